"""The checkpoints of a run: checkpoints/step_XXXXXXXX.pt, and last.pt, a link to the newest."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm_cli.checkpoints.format import CorruptCheckpoint, load_checkpoint, read_config, read_head, write_checkpoint
from ddpm_cli.checkpoints.run_folder import WEIGHTS, RunFolder
from ddpm_cli.checkpoints.sharded import remove_shards
from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.files import atomic, sync_folder
from ddpm_cli.shell import override

log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint into a run folder and make it last.pt too; return its path. Raise `NoRoom`."""
    path = RunFolder(folder).checkpoint(state["step"])
    path.parent.mkdir(exist_ok=True)
    write_checkpoint(path, state)
    _make_last(path)
    sync_folder(path.parent)  # before older checkpoints are removed
    return path


def prune(folder: Path, keep_last: int | None, window_of: Callable[[int], int]) -> None:
    """Remove all checkpoints except the newest `keep_last` and the first one in each window.

    window_of: returns the number of the window of a step; in window 0 none is kept. With `keep_last=None` all are kept.
    """
    if keep_last is None:
        return
    kept: set[int] = set()
    run = RunFolder(folder)
    for step, path in list(run.checkpoints_by_step().items())[:-keep_last]:
        number = window_of(step)
        if (number == 0 or number in kept) and not _shards_are_best(path, run):
            path.unlink(missing_ok=True)
            remove_shards(path)
        kept.add(number)


def _shards_are_best(path: Path, run: RunFolder) -> bool:
    """Return whether best.pt needs the shards of the checkpoint `path`."""
    best = run.checkpoints / "best.pt"
    return path.with_suffix(".shards").is_dir() and path in _checkpoints_of(run, [best])


def _checkpoints_of(run: RunFolder, names: list[Path]) -> set[Path]:
    """Return the checkpoints whose steps `names`, such as last.pt, have. Those that cannot be read are left out."""
    found = set()
    for path in names:
        with suppress(UserError):
            found.add(run.checkpoint(read_head("checkpoint", path)["step"]))
    return found


def find_checkpoint(key: str, value: str) -> Path:
    """Return the checkpoint file that `value` names: a file, a run folder, or a folder of ddpm-export or ddpm-import.

    Raise `UserError`, which names `key`, if there is none.
    """
    path = Path(value).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name that is too long or contains a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{key}={value}: cannot be read ({reason}); name another") from error
    if is_folder:
        for file in (RunFolder(path).last_checkpoint, path / WEIGHTS):
            if file.is_file():
                return file
        if (path / "model_index.json").is_file():
            raise UserError(
                f"{key}={value}: is a pipeline of diffusers; ddpm-import {override('path', path)} converts it"
            )
        raise UserError(f"{key}={value}: no checkpoint in this folder; a run writes checkpoints/last.pt")
    if not is_file:
        raise UserError(f"{key}={value}: no such file or folder; name a run folder or a checkpoint in one")
    return path


def newest_valid_checkpoint(key: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the newest valid checkpoint in a run folder and its contents; log those that are damaged.

    Raise `UserError` if none is valid.
    """
    for path in _newest_first(folder):
        try:
            return path, load_checkpoint(key, path)
        except CorruptCheckpoint as error:
            log.warning("%s", str(error).replace("name another checkpoint", "using the one before it"))
    raise UserError(f"{key}={folder}: none of its checkpoints is valid; start a new run")


def newest_config(key: str, folder: Path) -> tuple[Path, TrainConfig]:
    """Return the newest checkpoint in a run folder whose config can be read, and its config, as `read_config` does.

    Raise `UserError` if there is none.
    """
    for path in _newest_first(folder):
        with suppress(UserError):
            return path, read_config(key, path)
    path, state = newest_valid_checkpoint(key, folder)  # raises the error, and logs what is damaged
    return path, state["config"]


def _newest_first(folder: Path) -> list[Path]:
    run = RunFolder(folder)
    # last.pt is the only one if a run was copied without the others.
    paths = [*reversed(run.checkpoints_by_step().values()), run.last_checkpoint]
    return [path for path in paths if path.is_file()]


def move_later_checkpoints(folder: Path, step: int) -> None:
    """Move the checkpoints after `step` to a subfolder, and make last.pt the one of `step`, for a run resumed there."""
    run = RunFolder(folder)
    later = [path for number, path in run.checkpoints_by_step().items() if number > step]
    if later:
        aside = run.checkpoints / f"superseded_{time.time_ns()}"
        aside.mkdir()
        for path in reversed(later):  # newest first, so that an interruption leaves a consistent order
            path.replace(aside / path.name)
            shards = path.with_suffix(".shards")
            if shards.is_dir():
                shards.replace(aside / shards.name)
        log.warning("moved the %d checkpoints after step %d to %s, which you may remove", len(later), step, aside)
    if run.checkpoint(step).is_file():
        _make_last(run.checkpoint(step))
    _remove_incomplete_shards(run)


def _remove_incomplete_shards(run: RunFolder) -> None:
    """Remove shards without a checkpoint, which a killed process has left."""
    left = {folder.with_suffix(".pt") for folder in run.checkpoints.glob("step_*.shards")}
    alone = {path for path in left if not path.is_file()}
    if alone:  # those of last.pt and best.pt are used, in a run that was copied without the others
        for path in alone - _checkpoints_of(run, [run.last_checkpoint, run.checkpoints / "best.pt"]):
            remove_shards(path)


def keep_best(folder: Path, step: int) -> None:
    """Make the checkpoint of a step best.pt too, which is kept when the checkpoint itself is removed."""
    path = RunFolder(folder).checkpoint(step)
    if path.is_file():
        _also_as(path, "best.pt")


def _make_last(path: Path) -> None:
    _also_as(path, "last.pt")


def _also_as(path: Path, name: str) -> None:
    """Give a checkpoint a second name in its folder, atomically."""
    with atomic(path.with_name(name), path.stat().st_size) as partial:
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, partial)
