"""Compose the config of a command in Python, from the overrides that a user would type."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.cli.app.command import Command, load_options
from ddpm_cli.cli.app.error_messages import message_of
from ddpm_cli.cli.app.overrides import check_overrides, check_single, explain_composition_error, to_typed
from ddpm_cli.cli.app.own_configs import check_configs
from ddpm_cli.cli.app.shorthands import expand, without_plugins
from ddpm_cli.config import EXTRA_CONFIGS
from ddpm_cli.errors import UserError


def compose(command: Command, typed: Sequence[str]) -> tuple[Any, list[str]]:
    """Return the checked config of `ddpm-<command> <typed>`, and the overrides with short forms written in full.

    Raise `UserError`.
    """
    _check_typed(typed)
    typed = without_plugins(typed)
    load_options(command)
    check_configs(EXTRA_CONFIGS, typed)
    with _own_hydra():
        try:
            overrides = expand(command.name, command.schema, [*typed])
            check_overrides(command.name, command.schema, overrides)
            check_single(overrides, "call the function once for each of them")
            with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
                config = to_typed(hydra_compose(command.name, overrides))
        except OverrideParseException as error:
            raise UserError(message_of(error, command.schema)) from error
        except HydraException as error:
            meant = explain_composition_error(command.name, command.schema, overrides, error)
            raise UserError(message_of(meant, command.schema)) from error
        except OmegaConfBaseException as error:
            raise UserError(message_of(error, command.schema)) from error
    command.check(config)
    return config, overrides


def _check_typed(typed: Sequence[str]) -> None:
    """Raise `UserError` for what is no override."""
    for word in typed:
        if not isinstance(word, str):
            raise UserError(f"{word!r}: must be a string, as in train('dataset=digits', 'steps=1000')")
        if word.startswith("-"):
            raise UserError(f"{word}: is an option of the command, and the function takes overrides only; leave it out")


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Put aside the state of Hydra that the calling program may have initialised."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before
