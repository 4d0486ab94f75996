"""Checks of what was typed that Hydra does not make, before anything is written."""

from dataclasses import asdict
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from ddpm_cli.cli.help import NAMED, options_of
from ddpm_cli.config import GROUPS, CheckpointConfig, option_name
from ddpm_cli.errors import UserError, one_of


def check_groups(schema: type, overrides: list[str]) -> None:
    """Raise `UserError` for a group set to null that may not be, or to no name, and for a value in one that is null."""
    hints = get_type_hints(schema)
    _check_texts(overrides, {group for group, hint in hints.items() if hint in GROUPS})
    typed = {override.split("=")[0] for override in overrides}
    for group, hint in hints.items():
        options = [option for base in get_args(hint) for option in GROUPS.get(base, [])]
        lonely = [override for override in overrides if override.startswith(f"{group}.")]
        if options and NoneType in get_args(hint) and lonely and group not in typed:
            key = lonely[0].split("=")[0].removeprefix(f"{group}.")
            with_key = [option for option in options if key in get_type_hints(option)] or options
            example = f"{group}={option_name(with_key[0])} {lonely[0]}"
            raise UserError(f"{lonely[0]}: choose a {group} too, as in {example}")


def _check_texts(overrides: list[str], never_null: set[str]) -> None:
    """Raise `UserError` for what Hydra fails at: no key, and a group that is set to null, or to what is no name."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: has no key; write key=value")
        if override.key_or_group in NAMED and not override.is_sweep_override():
            value = override.value()
            if value is None and override.key_or_group not in never_null:
                raise UserError(f"{override.input_line}: leave it out, it is null by itself")
            if not isinstance(value, str) or not value or "${" in value:
                raise UserError(f"{override.input_line}: must be {one_of(options_of(override.key_or_group))}")


def check_checkpoint(config: CheckpointConfig) -> None:
    """Raise `UserError` for what can be known before the checkpoint is read."""
    from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint
    from ddpm_cli.distributed.devices import processes_of

    find_checkpoint("ckpt", config.ckpt)
    processes_of(config.devices, config.device)


def checked(cfg: DictConfig) -> Any:
    """The composed config as its dataclasses. Raises `UserError` for a key that they lack (+key=value)."""
    config: Any = OmegaConf.to_object(cfg)
    if extra := sorted(_keys(OmegaConf.to_container(cfg)) - _keys(asdict(config))):
        raise UserError(f"{extra[0]}: no such key; leave it out")
    return config


def _keys(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {prefix}.union(*(_keys(value, f"{prefix}.{key}".lstrip(".")) for key, value in tree.items()))
