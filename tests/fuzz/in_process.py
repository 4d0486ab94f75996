"""Run a command in this process as main() does, up to the start of its work."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from ddpm_cli.cli import evaluate, export, forward, import_, sample, train
from ddpm_cli.cli.app import run_command
from ddpm_cli.config.plugins import load_plugins
from ddpm_cli.distributed.waiting import STAT

load_plugins()  # once, because it reads the metadata of all installed packages
COMMANDS = {module.COMMAND.name: module.COMMAND for module in (train, sample, evaluate, forward, export, import_)}
FILE_EVENTS = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
}


@dataclass
class Outcome:
    """How a command ended: its config, or None, and the files that it wrote or read."""

    code: int
    out: str
    err: str
    config: Any
    seconds: float  # CPU time
    touched: list[str]


def start(command: str, *overrides: str) -> Outcome:
    """Run `ddpm-<command> <overrides>` up to the start of its work."""
    configs: list[Any] = []
    out, err, code = io.StringIO(), io.StringIO(), 0
    old = sys.argv
    sys.argv = [f"ddpm-{command}", *overrides]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    cpu_start = time.process_time()  # CPU time, because other processes are busy too
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _record_files() as touched:
            run_command(replace(COMMANDS[command], usage="", run=lambda config, _: configs.append(config)))
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        seconds = time.process_time() - cpu_start
        sys.argv = old
        GlobalHydra.instance().clear()
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return Outcome(code, out.getvalue(), err.getvalue(), configs[0] if configs else None, seconds, touched)


_recordings: list[list[str]] = []


def _record_event(event: str, args: tuple[Any, ...]) -> None:
    if not _recordings:
        return
    if event == "open" and isinstance(args[0], str | bytes):
        file, flags = Path(os.fsdecode(args[0])), args[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        harmless = file.suffix in (".yaml", ".py", ".pyc") or file == STAT  # the config, late imports, the load
        if writes or not harmless:
            _recordings[-1].append(f"open {file}")
    elif event in FILE_EVENTS and args[0] != ".":  # Hydra creates the working directory
        _recordings[-1].append(f"{event} {args[0]}")


sys.addaudithook(_record_event)  # an audit hook cannot be removed


@contextmanager
def _record_files() -> Iterator[list[str]]:
    """Record the files that are written, and those that are read apart from the config."""
    touched: list[str] = []
    _recordings.append(touched)
    try:
        yield touched
    finally:
        _recordings.pop()
