"""The config of a run as its checkpoints store it: a plain dict without paths."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import dacite

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.config import GROUPS, ImageDataset, Option, TrainConfig, option_name
from ddpm_cli.errors import UserError, check, one_of

PATHS = ("root", "font", "list")
"""Keys of datasets whose values are paths."""


def without_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as a dict without what belongs to a machine or a command.

    Paths in it mean nothing elsewhere and must not be opened if untrusted.
    """
    dataset = data.get("dataset")
    if isinstance(dataset, dict):
        dataset = {key: None if key in PATHS else value for key, value in dataset.items()}
    left = {"out": "", "resume": None, "resume_data_changed": False, "sweep": {"resume": None}, "threads": "auto"}
    return {**data, "dataset": dataset, **left}


def to_stored(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as a checkpoint stores it."""
    return without_paths(asdict(config))


def from_stored(data: object) -> TrainConfig:
    """Return the `TrainConfig` of a stored dict: the inverse of `to_stored`. Raise `UserError` for anything else."""
    if not isinstance(data, dict):
        raise UserError("config: must be a dict of keys")
    return train_config(without_paths(data))


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
