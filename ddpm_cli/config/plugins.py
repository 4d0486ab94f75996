"""Plugins: options and their implementations from other packages, or from files for trying them out."""

import inspect
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.config.commands import METRICS, Metric
from ddpm_cli.config.registry import EXTRA_CONFIGS, GROUPS, Option, decorated_implementation, option_name
from ddpm_cli.errors import UserError, one_of

log = logging.getLogger(__name__)

ENTRY_POINTS = "ddpm_cli.plugins"
VARIABLE = "DDPM_PLUGINS"
"""Environment variable with paths of modules and packages, separated like those of PATH."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
SLOW_SECONDS = 0.2
ARGUMENTS = {
    "sampler": ("denoise", "x", "process", "pairs", "noise"),
    "schedule": ("timesteps",),
    "loss": ("predicted",),
    "weighting": ("prediction", "snr"),
    "timestep_sampler": ("process", "device"),
    "model": ("in_channels", "out_channels", "classes"),
    "dataset": ("dataset", "train"),
    "metric": ("samples", "reference", "seed"),
}
"""What the implementations of each config group take by position."""

WITHOUT_YAML: list[type[Option]] = []
"""Options of plugins that have no YAML file. Their values are the defaults of their fields."""


@dataclass(frozen=True)
class Plugin:
    """A plugin: the package or file that it is from, for messages, and the module to import."""

    name: str
    module: str
    from_path: bool = False

    def defines(self, option: type[Option]) -> bool:
        """Return whether an option is defined in the package of the plugin."""
        return option.__module__.partition(".")[0] == self.module.partition(".")[0]


LOADED: list[Plugin] = []


def load_plugins() -> None:
    """Load the plugins that are installed or in `VARIABLE`, each once. Raise `UserError`, which names the plugin."""
    for plugin in _named():
        if plugin not in LOADED:
            _load(plugin)


def plugin_of(option: type[Option]) -> str | None:
    """Return the name of the plugin that defines an option; None for an option of ddpm-cli."""
    return next((plugin.name for plugin in LOADED if plugin.defines(option)), None)


def default_config(option: type[Option]) -> dict[str, Any]:
    """Return the YAML file of an option without one, as Hydra reads it: the defaults of the fields."""
    values = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(option)
        if field.name != "name"
    }
    return {"defaults": [f"{_schema(option)}_here_", "_self_"], **values}


def _schema(option: type[Option]) -> str:
    """Return how the YAML files of an option start the name of its schema."""
    return f"/schema/{option.group}/{option_name(option)}@"


def yaml_files(group: str) -> dict[str, str]:
    """Return the YAML files of a config group by their names without .yaml, and what stands for missing ones."""
    folders = [root / group for root in (files("ddpm_cli.configs"), *EXTRA_CONFIGS)]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    texts = {
        path.name.removesuffix(".yaml"): path.read_bytes().decode(errors="replace")  # read before they are checked
        for path in paths
        if path.name.endswith(".yaml") and path.is_file()
    }
    for option in WITHOUT_YAML:
        if option.group == group:
            values = default_config(option)
            texts[option_name(option)] = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000)
    return texts


def default_values(option: type[Option]) -> dict[str, Any]:
    """Return the values of the YAML file of an option."""
    values = yaml.safe_load(next(text for text in yaml_files(option.group).values() if _schema(option) in text))
    return {key: value for key, value in values.items() if key != "defaults"}


@cache
def _installed() -> list[Plugin]:
    points = sorted(entry_points(group=ENTRY_POINTS))
    return [Plugin(point.dist.name if point.dist else point.name, point.module) for point in points]


def _named() -> Iterator[Plugin]:
    yield from _installed()
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        yield _from_path(name)


def check_path(typed: str, name: str) -> Path:
    """Return the path of a plugin. Raise `UserError`, which starts with what was `typed`, if it cannot be one."""
    path = Path(name).expanduser().absolute()
    if not (path.is_file() and path.suffix == ".py") and not (path / "__init__.py").is_file():
        raise UserError(f"{typed}: no such file; name a Python file, or the folder of a Python package")
    return path


def _from_path(name: str) -> Plugin:
    """Return the plugin in a file or the folder of a package, whose parent is added to the paths of Python."""
    path = check_path(f"{VARIABLE}={name}", name)
    module = path.stem
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # also used by the processes that this one starts
    found = find_spec(module) if module.isidentifier() else None
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(path):
        raise UserError(f"{VARIABLE}={name}: {module} is not a new name of a Python module; rename the file")
    return Plugin(path.name, module, from_path=True)


def _load(plugin: Plugin) -> None:
    with_torch, started = "torch" in sys.modules, time.perf_counter()
    try:
        folder = Path(str(import_module(plugin.module).__file__)).parent / "configs"
        options = [option for options in GROUPS.values() for option in options if plugin.defines(option)]
        _check_names(options)
        _check_configs(folder)
        WITHOUT_YAML.extend(option for option in options if not _has_yaml(option, folder))
        for option in options:
            _check_implementation(option)
    except UserError as error:
        raise UserError(f"plugin {plugin.name}: {error}") from error
    except Exception as error:  # whatever its code raises
        raise UserError(
            f"plugin {plugin.name}: cannot be loaded ({type(error).__name__}: {error}); correct or uninstall it"
        ) from error
    LOADED.append(plugin)
    if folder.is_dir():
        EXTRA_CONFIGS.append(folder)
    seconds = time.perf_counter() - started
    because_of_torch = not with_torch and "torch" in sys.modules
    if seconds > SLOW_SECONDS and not (because_of_torch and plugin.from_path):
        why = ", because it imports torch" if because_of_torch else ""
        log.warning(
            "plugin %s: takes %.1f s to load%s; import what is slow where it is used", plugin.name, seconds, why
        )


def _check_names(options: list[type[Option]]) -> None:
    """Raise `UserError` for options whose names are taken or malformed."""
    for option in options:
        group, name = option.group, option_name(option)
        same = [other for base, others in GROUPS.items() if base.group == group for other in others]
        if not NAME.fullmatch(name):
            raise UserError(f"{group}={name}: names consist of a-z, 0-9 and _; rename the option")
        taken = {option_name(other) for other in same if other is not option}
        taken |= {*METRICS} if option.group == Metric.group else set()
        if name in taken:
            raise UserError(f"{group}={name}: there is an option of this name already; rename the plugin's")


def _has_yaml(option: type[Option], folder: Path) -> bool:
    """Return whether an option has a YAML file or needs none. Raise `UserError` if it needs one."""
    group, name = option.group, option_name(option)
    if group == Metric.group or any(_schema(option) in path.read_text() for path in folder.glob(f"{group}/*.yaml")):
        return True
    if without := [field.name for field in fields(option) if field.default is field.default_factory is MISSING]:
        raise UserError(
            f"configs/{group}/{name}.yaml: no such file; write it, or give defaults to {one_of(without)} of "
            f"{option.__name__}"
        )
    return False


def _check_implementation(option: type[Option]) -> None:
    """Raise `UserError` unless an implementation that is loaded already takes what its group and the option have."""
    choice, found = f"{option.group}={option_name(option)}", decorated_implementation(option)
    if found is None:
        if option.implementation is None:
            raise UserError(f"{choice}: has no implementation; decorate one with @implements({option.__name__})")
        return
    own = {field.name for field in fields(option)} | {name for name in dir(option) if not name.startswith("_")}
    given, signature = ARGUMENTS[option.group], inspect.signature(found)
    try:
        positional = [name for name in given if name not in own]  # timesteps is a field of schedules
        signature.bind(*positional, **{name: None for name in signature.parameters if name in own})
    except TypeError as error:
        raise UserError(
            f"{choice}: its implementation must take {', '.join(given)}, and by name only fields of {option.__name__} "
            f"({error})"
        ) from error


def failed_plugin(error: BaseException) -> str | None:
    """Return the plugin whose code raised an exception, with the file and the line; None if none did."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        for plugin in LOADED:
            if package == plugin.module.partition(".")[0]:
                return f"plugin {plugin.name} ({Path(frame.f_code.co_filename).name}, line {line})"
    return None


def _check_configs(folder: Path) -> None:
    """Raise `UserError` for YAML files that Hydra would not find, because others have their names."""
    for path in sorted(folder.rglob("*.yaml")):
        place = path.relative_to(folder)
        for other in (files("ddpm_cli.configs"), *EXTRA_CONFIGS):
            if (other / str(place)).is_file():
                raise UserError(f"configs/{place}: there is a file of this name already; rename the plugin's")
