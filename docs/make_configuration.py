"""Write docs/configuration.md, the reference of all commands, groups and keys: `make docs`.

Keys, defaults and meanings come from the YAML files in configs/. The allowed values are what the error messages say
when a key gets a value far out of its range.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_module
from omegaconf import OmegaConf

from ddpm_cli.cli import evaluate, export, forward, import_, sample, train
from ddpm_cli.cli.app.command import Command, register_schemas
from ddpm_cli.cli.app.help import groups_of, options_of
from ddpm_cli.cli.app.ranges import allowed_values

CONFIGS = Path(__file__).parents[1] / "configs"
PAGE = Path(__file__).parent / "configuration.md"
COMMANDS = {
    train.COMMAND: [],
    sample.COMMAND: ["ckpt=."],
    evaluate.COMMAND: ["ckpt=."],
    forward.COMMAND: ["image=."],
    export.COMMAND: ["ckpt=."],
    import_.COMMAND: ["path=."],
}
"""The commands that have a config, with overrides that make it complete."""
NEEDS = {
    "schedule=edm": ["prediction=edm"],
    "schedule=flow": ["prediction=flow"],
    "dataset=swiss_roll": ["model=mlp"],
    "loss=hybrid": ["variance=learned_range"],
    "model=mlp": ["dataset=swiss_roll"],
    "model=ddpm_cifar10": ["dataset=cifar10"],
    "model=improved_cifar10": ["dataset=cifar10"],
}
"""Overrides that some options need beside them."""
HIDDEN = {"schedules"}
"""Keys that have no single value."""
INTRODUCTION = """# Configuration

Every group, option and key of the commands, with its default, the values that are allowed and its meaning. This page is
generated from the YAML files and the checks of the code by `make docs`; `ddpm-train --help` and
`ddpm-train --help <group>` show the same in a terminal. [What you can type](command-line.md) explains how keys are set.
"""


@dataclass(frozen=True)
class Key:
    """A key of a YAML file: its full name, the default as written, and its comment."""

    name: str
    default: str
    meaning: str


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """Return the text of docs/configuration.md."""
    parts = [INTRODUCTION]
    for command in COMMANDS:
        parts += [f"## ddpm-{command.name}\n", _command_table(command)]
    parts += [
        "## Groups\n",
        "`group=option` chooses an option, for example `schedule=linear`. `group.key=value` sets a key.\n",
    ]
    for group in groups_of("train"):
        parts += [f"### {group}\n", _descriptions(group)]
        if group not in ("experiment", "sweep"):
            parts.append(_group_table(group))
    return "\n".join(part for part in parts if part)


def _command_table(command: Command) -> str:
    config = _compose(command)
    body = (CONFIGS / f"{command.name}.yaml").read_text().split("\n\n", 1)[1].split("\nhydra:")[0]
    rows = [
        f"| `{key.name}` | {_code(key.default)} | {_allowed(config, key.name)} | {key.meaning} |"
        for key in _keys(body)
        if key.name.split(".")[0] not in HIDDEN
    ]
    return "\n".join(["| key | default | allowed | meaning |", "|---|---|---|---|", *rows, ""])


def _group_table(group: str) -> str:
    """Return a table of the keys of a group, with the defaults of each option."""
    options = {option: _option_keys(group, option) for option in options_of(group)}
    names = dict.fromkeys(name for keys in options.values() for name in keys)
    if not names:
        return ""
    with_keys = [option for option, keys in options.items() if keys]
    lines = [
        f"| key | {' | '.join(f'`{option}`' for option in with_keys)} | allowed | meaning |",
        "|---" * (len(with_keys) + 3) + "|",
    ]
    for name in names:
        first = next(option for option in with_keys if name in options[option])
        config = _compose(train.COMMAND, f"{group}={first}", *NEEDS.get(f"{group}={first}", []))
        defaults = [_code(options[option][name].default) if name in options[option] else "" for option in with_keys]
        cells = [f"`{name}`", *defaults, _allowed(config, f"{group}.{name}"), _meaning(options, name)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _meaning(options: Mapping[str, Mapping[str, Key]], name: str) -> str:
    """Return the meaning of a key, or its meanings if they depend on the option."""
    having: dict[str, list[str]] = {}
    for option, keys in options.items():
        if name in keys:
            having.setdefault(keys[name].meaning, []).append(f"`{option}`")
    if len(having) == 1:
        return next(iter(having))
    return "<br>".join(f"{', '.join(names)}: {meaning}" for meaning, names in having.items())


def _descriptions(group: str) -> str:
    """Return a list of the options of a group with the comments at the head of their files."""
    lines = []
    for option in options_of(group):
        head = re.match(r"((?:#.*\n)*)", (CONFIGS / group / f"{option}.yaml").read_text())
        words = [line.lstrip("# ") for line in (head[1] if head else "").splitlines() if "@package" not in line]
        lines.append(f"- `{group}={option}`" + (f": {' '.join(words)}" if words else ""))
    return "\n".join([*lines, ""])


def _option_keys(group: str, option: str) -> dict[str, Key]:
    text = (CONFIGS / group / f"{option}.yaml").read_text()
    return {key.name: key for key in _keys(text.split("defaults:", 1)[1].split("\n", 1)[1])}


def _keys(text: str) -> Iterator[Key]:
    """Yield the keys of a YAML text with at most two levels."""
    section = ""
    for line in text.splitlines():
        match = re.fullmatch(r"( *)([a-z_0-9]+):(?: (.*?))?(?:  # (.*))?", line)
        if match is None:
            continue
        indent, name, default, comment = match.groups()
        if default is None:
            section = name
            continue
        yield Key(f"{section}.{name}" if indent else name, default, comment or "")


@cache
def _compose(command: Command, *overrides: str) -> Any:
    register_schemas(command.name, command.schema)
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        return OmegaConf.to_object(hydra.compose(command.name, [*COMMANDS[command], *overrides]))


def _allowed(config: Any, key: str) -> str:
    """Return the values that a key of a config allows."""
    *groups, last = key.split(".")
    return allowed_values(reduce(getattr, groups, config), last, key).replace("|", "\\|")


def _code(default: str) -> str:
    text = default.strip('"')
    return "required" if text == "???" else f"`{text}`" if text else ""


if __name__ == "__main__":
    main()
