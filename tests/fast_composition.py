"""Make Hydra compose configs in a third of the time, for all tests that run commands in this process.

The result is the same: what is read or composed again and again is kept, and copied. The first of Hydra's two
compositions, which only reads hydra.mode, is skipped.
"""

import functools
import pickle
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource

from ddpm_cli.cli.app import command as app
from ddpm_cli.config import plugins

PROVIDERS = ("hydra", "main", "schema")
"""The sources of all commands; others are files of a user or of a plugin, which may change."""

_files: dict[tuple[str, str], bytes] = {}
_choices: dict[Any, DefaultsList] = {}
_composed: dict[int, tuple[DefaultsList, bytes]] = {}


def install() -> None:
    """Replace what is slow, once for this process."""
    app.register_schemas = functools.cache(app.register_schemas)
    Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    # Hydra copies the repository, and all schemas with it, because it may replace the list of sources.
    ConfigRepository.__deepcopy__ = lambda self, _: copy(self)  # type: ignore[attr-defined]
    Plugins.instance()  # which registers the sources
    package = SourcesRegistry.instance().resolve("pkg")
    package.load_config = _read_once(package.load_config)  # type: ignore[method-assign]
    config_loader_impl.create_defaults_list = _choose_once(config_loader_impl.create_defaults_list)
    compose = ConfigLoaderImpl._compose_config_from_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose_once(compose)  # type: ignore[method-assign]


def forget() -> None:
    """Forget what was composed, because there are other options now."""
    _choices.clear()
    _composed.clear()


def _read_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return `load_config` of the source of packages, which reads each YAML file once."""

    def load_config(self: ConfigSource, config_path: str) -> Any:
        key = (self.path, config_path)
        if key not in _files:
            _files[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(_files[key])  # in less time than a deep copy

    return load_config


def _choose_once(create: Callable[..., DefaultsList]) -> Callable[..., DefaultsList]:
    """Return `create_defaults_list` with a memory for what options were chosen, if all of them are in packages."""

    def create_once(repo: Any, config_name: str, overrides_list: list[Override], **how: Any) -> DefaultsList:
        own = Overrides(repo=repo, overrides_list=overrides_list)
        own_files = any(source.provider not in PROVIDERS for source in repo.get_sources())
        if own.deletions or own_files or plugins.LOADED:
            return create(repo, config_name, overrides_list, **how)
        choices = [one for one in overrides_list if one not in own.config_overrides]
        key = (config_name, *how.items(), *(one.input_line for one in choices))
        if key not in _choices:
            _choices[key] = create(repo, config_name, choices, **how)
        return replace(_choices[key], config_overrides=own.config_overrides)

    return create_once


def _compose_once(compose: Callable[..., Any]) -> Callable[..., Any]:
    """Return `ConfigLoaderImpl._compose_config_from_defaults_list` with a memory for lists that `_choose_once` kept."""

    def composed(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        if id(defaults) not in _composed:
            result = compose(self, defaults, repo)
            if not any(kept.defaults is defaults for kept in _choices.values()):
                return result
            _composed[id(defaults)] = (defaults, pickle.dumps(result))  # which keeps the list alive
        return pickle.loads(_composed[id(defaults)][1])

    return composed
