"""A command asked in this process whether it would do what was typed, as main() asks it, without doing it."""

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

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from ddpm_cli.cli import evaluate, export, forward, import_, sample, train
from ddpm_cli.cli.app import command as command_module
from ddpm_cli.cli.app import register_schemas, run_command
from tests.conftest import SCHEMAS

COMMANDS = {module.COMMAND.name: module.COMMAND for module in (train, sample, evaluate, forward, export, import_)}
TOUCHING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


@dataclass
class Answer:
    """How a command ended: the config that it would have run, or none; the files that it wrote or read on the way."""

    code: int
    out: str
    err: str
    config: Any
    seconds: float  # of the processor
    touched: list[str]


def ask(command: str, *overrides: str) -> Answer:
    """`ddpm-<command> <overrides>` up to where the work would begin."""
    configs: list[Any] = []
    out, err, code = io.StringIO(), io.StringIO(), 0
    old = sys.argv
    sys.argv = [f"ddpm-{command}", *overrides]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    start = time.process_time()  # of this process alone, for others are busy too
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _watched() as touched:
            run_command(replace(COMMANDS[command], usage="", run=lambda config, _: configs.append(config)))
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        seconds = time.process_time() - start
        sys.argv = old
        GlobalHydra.instance().clear()
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return Answer(code, out.getvalue(), err.getvalue(), configs[0] if configs else None, seconds, touched)


@contextmanager
def quick() -> Iterator[None]:
    """Within it an answer takes half the time.

    Hydra composes twice, the first time to look at hydra.mode, which no one types here, and forgives all errors;
    and the schemas are the same each time.
    """
    for name, schema in SCHEMAS.items():
        register_schemas(name, schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr(command_module, "register_schemas", lambda *_: None)
        yield


_watching: list[list[str]] = []


def _note(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(args[0], str | bytes):
        file, flags = Path(os.fsdecode(args[0])), args[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or file.suffix not in (".yaml", ".py", ".pyc"):  # the config itself, and modules imported late
            _watching[-1].append(f"open {file}")
    elif event in TOUCHING and args[0] != ".":  # which Hydra makes sure of
        _watching[-1].append(f"{event} {args[0]}")


sys.addaudithook(_note)  # Python has no way to remove it


@contextmanager
def _watched() -> Iterator[list[str]]:
    """The files that are written, and those that are read beside the config."""
    touched: list[str] = []
    _watching.append(touched)
    try:
        yield touched
    finally:
        _watching.pop()
