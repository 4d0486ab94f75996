"""The config of a run as its checkpoints store it: a plain dict without paths."""

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import dacite

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.config import GROUPS, ImageDataset, Option, TrainConfig, option_name
from ddpm_cli.config.plugins import plugin_of
from ddpm_cli.errors import UserError, check, one_of

PATHS = ("root", "font", "list")
"""Keys of datasets whose values are paths."""
NO_SWEEP = {"resume": None, "prune": None, "reduction_factor": 3, "first_rung": 1}
NOT_STORED: dict[str, Any] = {
    "out": "",
    "resume": None,
    "resume_data_changed": False,
    "sweep": NO_SWEEP,
    "threads": "auto",
    "init": None,
    "init_weights": "ema",
}
"""Keys that belong to a machine or a command rather than to a run, with the values that are stored instead."""

PLUGIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LONGEST_NAME = 64


def without_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as a dict without what belongs to a machine or a command.

    Paths in it mean nothing elsewhere and must not be opened if untrusted.
    """
    dataset = data.get("dataset")
    if isinstance(dataset, dict):
        dataset = {key: None if key in PATHS else value for key, value in dataset.items()}
    return {**data, "dataset": dataset, **NOT_STORED}


def to_stored(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as a checkpoint stores it."""
    return without_paths(asdict(config))


def from_stored(data: object) -> TrainConfig:
    """Return the `TrainConfig` of a stored dict: the inverse of `to_stored`. Raise `UserError` for anything else."""
    if not isinstance(data, dict):
        raise UserError("config: must be a dict of keys")
    return train_config(without_paths(data))


def plugins_of(config: TrainConfig) -> dict[str, str]:
    """Return the names of the plugins that define options of `config`, by config group."""
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    names = {group: plugin_of(type(option)) for group, option in options.items() if isinstance(option, Option)}
    return {group: name for group, name in names.items() if name is not None}


def missing_plugin(config: Any, plugins: Any) -> str:
    """Return an error message about an option of a stored config whose plugin is not loaded; empty if there is none.

    plugins: as `plugins_of` returns them. They are only named, never loaded.
    """
    known = {base.group: {option_name(option) for option in options} for base, options in GROUPS.items()}
    if not isinstance(config, dict) or not isinstance(plugins, dict):
        return ""  # not a checkpoint, which is checked later
    for group, plugin in plugins.items():
        option = config.get(group)
        if group not in known or not isinstance(option, dict) or not PLUGIN_NAME.fullmatch(str(plugin)):
            return "plugins: must be names of packages by config group; name another checkpoint"
        name = str(option.get("name"))
        if name not in known[group]:
            return (
                f"{group}={name[:LONGEST_NAME]}: belongs to the plugin {plugin}, which is not installed; install it, "
                "or name its file, as in plugins=[./mine.py]"
            )
    return ""


def train_config(data: Mapping[str, Any]) -> TrainConfig:
    """Return the `TrainConfig` of a dict that `dataclasses.asdict` returned.

    Raise `UserError` for a missing or unknown key, a wrong type or a value out of range.
    """
    hooks = {base: _option_reader(base, options) for base, options in GROUPS.items()}
    try:
        return dacite.from_dict(TrainConfig, data, dacite.Config(strict=True, type_hooks=hooks))
    except (dacite.DaciteError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"config: {' '.join(str(error).split())}") from error


def with_noted_paths(config: TrainConfig, checkpoint: Path) -> TrainConfig:
    """Return `config` with the paths of the data that are noted in the run folder of `checkpoint`, if there is one."""
    run = RunFolder.of(checkpoint)
    if run is None or not isinstance(config.dataset, ImageDataset):
        return config
    try:
        noted = dict(run.read_config()["dataset"])
    except (KeyError, TypeError, ValueError):
        return config
    own = {field.name for field in fields(config.dataset)}
    paths = {key: noted[key] for key in PATHS if key in own and isinstance(noted.get(key), str)}
    return replace(config, dataset=replace(config.dataset, **paths))


def _option_reader(base: type[Option], options: list[type[Option]]) -> Any:
    by_name = {option_name(option): option for option in options}

    def read(data: Mapping[str, Any]) -> Option:
        name = str(data.get("name"))
        check(name in by_name, f"{base.group}.name", name, one_of(by_name))
        return dacite.from_dict(by_name[name], data, dacite.Config(strict=True))

    return read
