"""Run a command in this process as main() does, up to the start of its work."""

import contextlib
import io
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides, create_defaults_list
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override

from ddpm_cli.cli import evaluate, export, forward, import_, sample, train
from ddpm_cli.cli.app import command as command_module
from ddpm_cli.cli.app import register_schemas, run_command
from ddpm_cli.config.plugins import load_plugins
from ddpm_cli.distributed.waiting import STAT
from tests.conftest import SCHEMAS

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


@contextmanager
def fast_composition() -> Iterator[None]:
    """Make `start` several times as fast within the block.

    Register the schemas once, skip the first of Hydra's two compositions, which only reads hydra.mode, read each YAML
    file once, and compose the options that were chosen once. Values are set in a copy of what was composed.
    """
    for name, schema in SCHEMAS.items():
        register_schemas(name, schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr(command_module, "register_schemas", lambda *_: None)
        patch.setattr(ConfigRepository, "load_config", _copies(ConfigRepository.load_config))
        # Hydra copies the repository, and all schemas with it, because it may replace the list of sources.
        patch.setattr(ConfigRepository, "__deepcopy__", lambda repository, _: copy(repository), raising=False)
        patch.setattr(config_loader_impl, "create_defaults_list", _chosen_once(create_defaults_list))
        composed = ConfigLoaderImpl._compose_config_from_defaults_list
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _composed_once(composed))
        yield


def _copies(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return `ConfigRepository.load_config` with a memory, from which it returns copies."""
    memory: dict[str, bytes] = {}

    def load_config(self: ConfigRepository, config_path: str) -> Any:
        if config_path not in memory:
            memory[config_path] = pickle.dumps(load(self, config_path))
        return pickle.loads(memory[config_path])  # in less time than a deep copy

    return load_config


def _chosen_once(create: Callable[..., DefaultsList]) -> Callable[..., DefaultsList]:
    """Return `create_defaults_list` with a memory for what options were chosen."""
    memory: dict[Any, DefaultsList] = {}

    def create_once(repo: Any, config_name: str, overrides_list: list[Override], **how: Any) -> DefaultsList:
        own = Overrides(repo=repo, overrides_list=overrides_list)
        if own.deletions:
            return create(repo, config_name, overrides_list, **how)
        choices = [one for one in overrides_list if one not in own.config_overrides]
        key = (config_name, *(one.input_line for one in choices))
        if key not in memory:
            memory[key] = create(repo, config_name, choices, **how)
        return replace(memory[key], config_overrides=own.config_overrides)

    return create_once


def _composed_once(compose: Callable[..., Any]) -> Callable[..., Any]:
    """Return `ConfigLoaderImpl._compose_config_from_defaults_list` with a memory, from which it returns copies."""
    memory: dict[int, tuple[Any, bytes]] = {}

    def composed(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        if id(defaults) not in memory:
            memory[id(defaults)] = (defaults, pickle.dumps(compose(self, defaults, repo)))  # which keeps the key alive
        return pickle.loads(memory[id(defaults)][1])

    return composed


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
