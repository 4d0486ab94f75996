"""Find the newest runs below a folder."""

import os
from pathlib import Path

from ddpm_cli.checkpoints.run_folder import WEIGHTS, RunFolder

OUTPUTS = Path("outputs")
"""Where `latest` and an incomplete command look for runs."""
MAX_DEPTH = 4


def newest_runs(folder: Path) -> list[Path]:
    """Return the run folders up to `MAX_DEPTH` levels below `folder` that have a checkpoint, newest first."""
    times = {}
    for directory, subfolders, _ in os.walk(folder):
        depth = len(Path(directory).relative_to(folder).parts)
        subfolders[:] = [name for name in subfolders if depth < MAX_DEPTH and not name.startswith(".")]
        last = RunFolder(Path(directory)).last_checkpoint
        if "checkpoints" in subfolders and last.is_file():
            times[Path(directory)] = last.stat().st_mtime_ns
            subfolders.clear()  # a run contains no other runs
    return sorted(times, key=lambda run: times[run], reverse=True)


def newest_run_of(typed: str) -> Path | None:
    """Return the newest run that `latest`, a folder of runs or the checkpoints folder of a run stands for.

    Return None if `typed` is none of these, for example because it is a run itself.
    """
    if typed == "latest":
        return next(iter(newest_runs(OUTPUTS)), None)
    path = Path(typed).expanduser()
    if not typed or not path.is_dir() or RunFolder(path).last_checkpoint.is_file() or (path / WEIGHTS).is_file():
        return None
    if path.name == "checkpoints" and (path / "last.pt").is_file():
        return path.parent
    return next(iter(newest_runs(path)), None)
