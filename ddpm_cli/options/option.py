"""What the options of all groups share."""

from dataclasses import dataclass, fields
from typing import ClassVar

from ddpm_cli.errors import check

MAX_SIZE = 4096
"""Pixels a side, channels a level: far above what fits, far below what overflows."""


@dataclass(kw_only=True)
class Option:
    """One option of a config group; `name` says which, in checkpoints too."""

    group: ClassVar[str]
    name: str

    def __post_init__(self) -> None:
        own = option_name(type(self))
        check(self.name == own, f"{self.group}.name", self.name, f"{own}; {self.group}=… chooses another option")


def option_name(option: type[Option]) -> str:
    """What `name` is in an option of this type."""
    return str(next(field.default for field in fields(option) if field.name == "name"))
