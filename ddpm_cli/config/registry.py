"""Options of the config groups: the base class, and a registry that each subclass enters when it is defined."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ddpm_cli.errors import check

MAX_SIZE = 4096
"""Largest image side in pixels and largest number of channels: more than fits in memory, less than overflows."""

GROUPS: dict[type["Option"], list[type["Option"]]] = {}
"""The base class of each config group and the options that have been defined for it."""


@dataclass(kw_only=True)
class Option:
    """One option of a config group, for example `schedule=cosine`.

    Direct subclasses are the groups; they set `group`. Their subclasses are options if they give `name` a default.
    The name identifies the option in YAML files, on the command line and in checkpoints.
    """

    group: ClassVar[str]
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
