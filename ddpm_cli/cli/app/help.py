"""The text of --help, read from the YAML files. Hydra's own help takes more than a second."""

from functools import cache
from importlib.resources import files

from ddpm_cli.config import EXTRA_CONFIGS

SETTING_GROUPS = {"experiment", "sweep"}
"""Groups whose options set values of other groups."""


def help_text(name: str, usage: str) -> str:
    """Return `usage`, the groups with their options, and configs/<name>.yaml with its comments."""
    root = (files("ddpm_cli.configs") / f"{name}.yaml").read_text()
    values = root.split("\n\n", 1)[1].split("\nhydra:")[0]
    listed = [f"  {group:16} {' '.join(options_of(group))}" for group in groups_of(name)]
    lines = [usage.strip(), *(["", "Groups (group=option):", *listed] if listed else [])]
    lines += ["", "Values (key=value):"]
    lines += [f"  {line}".rstrip() for line in values.strip().splitlines()]
    lines += ["", f"ddpm-{name} --cfg job also shows the values of the groups, --hydra-help the options of Hydra."]
    return "\n".join(lines)


@cache
def groups_of(name: str) -> list[str]:
    """Return the config groups that `ddpm-<name>` has, in the order of configs/<name>.yaml."""
    defaults = (files("ddpm_cli.configs") / f"{name}.yaml").read_text().split("\n\n", 1)[0]
    listed = [line.strip().removeprefix("- ").partition(":")[0] for line in defaults.splitlines() if ": " in line]
    return [group for group in listed if (files("ddpm_cli.configs") / group).is_dir()]


def options_of(group: str) -> list[str]:
    """Return the names of the options of a config group."""
    return sorted(_texts_of(group))


def configs_of(group: str, name: str) -> list[str]:
    """Return the options of a config group whose values make an `Option` of this name."""
    return [option for option, text in sorted(_texts_of(group).items()) if f"/schema/{group}/{name}@" in text]


@cache
def _texts_of(group: str) -> dict[str, str]:
    """Return the YAML files of a config group by the name of the option."""
    folders = [root / group for root in (files("ddpm_cli.configs"), *EXTRA_CONFIGS)]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return {path.name.removesuffix(".yaml"): path.read_text() for path in paths if path.name.endswith(".yaml")}
