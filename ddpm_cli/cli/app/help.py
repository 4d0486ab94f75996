"""The text of --help, read from the YAML files. Hydra's own help takes more than a second."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from ddpm_cli.cli.app.ranges import with_ranges
from ddpm_cli.config import plugin_metrics
from ddpm_cli.config.plugins import yaml_files
from ddpm_cli.errors import UserError, check, one_of

ALIASES: Mapping[str, Mapping[str, str]] = {
    "dataset": {"fashion": "fashion_mnist", "folder": "image_folder"},
    "schedule": {"cos": "cosine"},
    "loss": {"mse": "l2", "mae": "l1", "smoothl1": "huber"},
    "model": {"unet": "small"},
    "device": {"gpu": "cuda"},
}
"""Other names of options, in lower case and without separators."""
SETTING_GROUPS = {"experiment", "sweep"}
"""Groups whose options set values of other groups."""


def help_text(name: str, usage: str, topics: list[str]) -> str:
    """Return `usage`, the groups with their options, and configs/<name>.yaml with its comments.

    With `topics`, groups or options of groups (`model`, `model=small`), return their YAML files instead. Raise
    `UserError` for other topics.
    """
    if topics:
        return "\n\n".join(_help_of(name, topic) for topic in topics)
    values = _values_of(name)
    listed = [f"  {group:16} {' '.join(options_of(group))}" for group in groups_of(name)]
    lines = [usage.strip(), *(["", "Groups (group=option):", *listed] if listed else [])]
    lines += ["", "Values (key=value):"]
    lines += [f"  {line}".rstrip() for line in values.strip().splitlines()]
    lines += ["", f"ddpm-{name} --cfg job also shows the values of the groups, --hydra-help the options of Hydra."]
    return "\n".join(lines)


def version_text() -> str:
    """Return the versions of ddpm-cli and torch, and the device that device=auto means."""
    import torch

    from ddpm_cli.distributed.devices import resolve_device

    device = resolve_device("auto")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"ddpm-cli {version('ddpm-cli')}, torch {torch.__version__}, device=auto is {device}{name}"


def _values_of(name: str) -> str:
    """Return configs/<name>.yaml without its defaults and Hydra's settings, with the metrics of plugins."""
    root = (files("ddpm_cli.configs") / f"{name}.yaml").read_text()
    values = root.split("\n\n", 1)[1].split("\nhydra:")[0]
    own = ", ".join(plugin_metrics())
    return re.sub(r"^metrics: .*", rf"\g<0>; of plugins: {own}", values, flags=re.MULTILINE) if own else values


def _help_of(name: str, topic: str) -> str:
    """Return the keys of a group, an option or a section of configs/<name>.yaml, with their meanings and ranges."""
    group, _, option = topic.partition("=")
    if group in groups_of(name):
        options = [option_meant(group, option) or option] if option else options_of(group)
        check(all(one in options_of(group) for one in options), group, option, one_of(options_of(group)))
        texts = {one: with_ranges(group, _texts_of(group)[one]) for one in options}
        return "\n\n".join(f"{group}={one}\n{_indented(text)}" for one, text in texts.items())
    section = re.search(rf"^{re.escape(topic)}:.*\n(  .*\n)*", f"{_values_of(name)}\n", re.MULTILINE)
    if section is None:
        raise UserError(f"{topic}: no such group or key; ddpm-{name} --help lists them")
    return with_ranges(topic, section[0].rstrip())


def _indented(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith(("defaults: [", "# @package"))]
    return "\n".join(f"  {line}".rstrip() for line in lines)


@cache
def groups_of(name: str) -> list[str]:
    """Return the config groups that `ddpm-<name>` has, in the order of configs/<name>.yaml."""
    defaults = (files("ddpm_cli.configs") / f"{name}.yaml").read_text().split("\n\n", 1)[0]
    listed = [line.strip().removeprefix("- ").partition(":")[0] for line in defaults.splitlines() if ": " in line]
    return [group for group in listed if (files("ddpm_cli.configs") / group).is_dir()]


def options_of(group: str) -> list[str]:
    """Return the names of the options of a config group."""
    return sorted(_texts_of(group))


def option_meant(group: str, name: str) -> str | None:
    """Return the option that `name` means in another case, with other separators, or as an alias; None if none."""
    plain = _plain(name)
    options = {_plain(option): option for option in options_of(group)} if group != "device" else {}
    return options.get(plain) or ALIASES.get(group, {}).get(plain)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def configs_of(group: str, name: str) -> list[str]:
    """Return the options of a config group whose values make an `Option` of this name."""
    return [option for option, text in sorted(_texts_of(group).items()) if f"/schema/{group}/{name}@" in text]


def forget_options() -> None:
    """Read the options of all groups again, because there are more."""
    _texts_of.cache_clear()


@cache
def _texts_of(group: str) -> dict[str, str]:
    return yaml_files(group)
