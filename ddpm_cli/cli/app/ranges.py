"""The values that keys allow, taken from the error messages of their dataclasses."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from ddpm_cli.config import GROUPS, option_name
from ddpm_cli.config.processes import Distributed
from ddpm_cli.config.train import Checkpointing, MilestoneEvaluation, Train
from ddpm_cli.errors import UserError

FAR_OUT: tuple[object, ...] = (-(10**18), 10**18, "?", [])
"""Values that hardly any key allows."""
SECTIONS: Mapping[str, type] = {
    "train": Train,
    "evaluate": MilestoneEvaluation,
    "checkpoint": Checkpointing,
    "distributed": Distributed,
}
"""Dataclasses of the sections of configs/train.yaml."""
KEY = re.compile(r"( *)([a-z_0-9]+): (.*?)(?:  # (.*))?")
"""A line of a YAML file with a key, its value and a comment."""


def allowed_values(owner: Any, name: str, key: str) -> str:
    """Return the values that the field `name` of a dataclass allows, in words; empty if all of its type.

    key: its full name, as in error messages.
    """
    value = getattr(owner, name)
    if isinstance(value, bool):
        return "true or false"
    for far_out in FAR_OUT:
        try:
            replace(owner, **{name: far_out})
        except UserError as error:
            if found := re.match(rf"{re.escape(key)}=.*?: must be (.*)", str(error)):
                return found[1]
        except (TypeError, ValueError, AttributeError):
            continue  # a value of the wrong type
    return ""


def with_ranges(group: str, text: str) -> str:
    """Return the YAML text of an option of `group`, or of a section of configs/train.yaml, with ranges in comments.

    A text that is no complete and valid option is returned unchanged.
    """
    try:
        owner = _owner(group, text)
    except (UserError, TypeError, KeyError, ValueError, yaml.YAMLError):  # of --config-dir: incomplete, or wrong
        return text
    return "\n".join(_with_range(line, owner, group) for line in text.splitlines()) if owner else text


def _owner(group: str, text: str) -> Any:
    """Return the dataclass instance with the values of a YAML text, or None for options that set other groups."""
    if group in SECTIONS:
        return SECTIONS[group](**yaml.safe_load(text)[group])
    schema = re.search(rf"/schema/{group}/(\w+)@", text)
    if schema is None:
        return None
    kinds = {
        option_name(option): option for base, options in GROUPS.items() if base.group == group for option in options
    }
    values = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    return kinds[schema[1]](name=schema[1], **values)


def _with_range(line: str, owner: Any, group: str) -> str:
    match = KEY.fullmatch(line)
    if match is None or not hasattr(owner, match[2]):
        return line
    indent, name, value, meaning = match.groups()
    words = allowed_values(owner, name, f"{group}.{name}")
    said = words == "true or false" or (meaning and words in meaning)
    comment = "; ".join(part for part in (meaning, "" if said else words) if part)
    return f"{indent}{name}: {value}" + (f"  # {comment}" if comment else "")
