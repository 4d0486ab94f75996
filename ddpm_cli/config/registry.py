"""Registry of the options of the config groups and of what implements them.

A new option, for example a sampler, takes three steps: a subclass of the group's dataclass, which registers itself; an
implementation, decorated with `implements` or named by the dataclass; and a YAML file <group>/<name>.yaml in configs/
or a folder of `EXTRA_CONFIGS`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ddpm_cli.errors import UserError, check

MAX_SIZE = 4096
"""Largest image side in pixels and largest number of channels: more than fits in memory, less than overflows."""

GROUPS: dict[type["Option"], list[type["Option"]]] = {}
"""The base class of each config group and the options that have been defined for it."""

EXTRA_CONFIGS: list[Path] = []
"""Folders laid out like configs/, with the YAML files of options that are defined outside the package."""

_IMPLEMENTATIONS: dict[type["Option"], Callable[..., Any]] = {}
Implementation = TypeVar("Implementation", bound=Callable[..., Any])


@dataclass(kw_only=True)
class Option:
    """One option of a config group, for example `schedule=cosine`.

    Direct subclasses are the groups; they set `group`. Their subclasses are options if they give `name` a default.
    The name identifies the option in YAML files, on the command line and in checkpoints. `implementation` is
    `module:name` of what implements the option, which is imported when it is needed; None if it is decorated with
    `implements` in a module that is imported anyway.
    """

    group: ClassVar[str]
    implementation: ClassVar[str | None] = None
    name: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Option in cls.__bases__:
            GROUPS[cls] = []
        elif "name" in cls.__dict__:
            base = next(parent for parent in cls.__mro__ if Option in parent.__bases__)
            GROUPS[base].append(cls)

    def __post_init__(self) -> None:
        own = option_name(type(self))
        check(self.name == own, f"{self.group}.name", self.name, f"{own}; {self.group}=… chooses another option")


def option_name(option: type[Option]) -> str:
    """Return the default of `name` of an option."""
    return str(next(field.default for field in fields(option) if field.name == "name"))


def implements(option: type[Option]) -> Callable[[Implementation], Implementation]:
    """Return a decorator that registers a function or a class as the implementation of `option`.

    It takes plain arguments: those that its group prescribes, and the fields and properties of the option that it has
    parameters for, by name.
    """

    def register(implementation: Implementation) -> Implementation:
        _IMPLEMENTATIONS[option] = implementation
        return implementation

    return register


def implementation_of(option: Option) -> Callable[..., Any]:
    """Return the implementation of `option` with the values of the option bound to its parameters."""
    implementation = _IMPLEMENTATIONS.get(type(option)) or _imported(option)
    parameters = inspect.signature(implementation).parameters
    return partial(implementation, **{name: getattr(option, name) for name in parameters if hasattr(option, name)})


def decorated_implementation(option: type[Option]) -> Callable[..., Any] | None:
    """Return what was decorated with `implements`; None if the option names its implementation."""
    return _IMPLEMENTATIONS.get(option)


def _imported(option: Option) -> Callable[..., Any]:
    """Import and return the implementation that an option names. Raise `UserError`."""
    if option.implementation is None:
        raise TypeError(f"no implementation of {option.group}={option.name}; decorate one with @implements")
    module, _, name = option.implementation.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{option.group}={option.name}: {option.implementation}, which implements it, cannot be imported "
            f"({error}); install what is missing, or choose another option"
        ) from error
    return found
