"""The text of --help, from the YAML files themselves. Hydra's own help takes over a second to gather."""

from importlib.resources import files

from ddpm_cli.config import GROUPS

NAMED = [*(base.group for base in GROUPS), "experiment", "sweep"]
"""The groups; the last two set values anywhere."""


def help_text(name: str, usage: str) -> str:
    """`usage`, the groups with their options, and configs/<name>.yaml with its comments."""
    root = (files("ddpm_cli.configs") / f"{name}.yaml").read_text()
    defaults, values = root.split("\n\n", 1)
    values = values.split("\nhydra:")[0]
    listed = [f"  {group:16} {' '.join(options_of(group))}" for group in NAMED if f"- {group}:" in defaults]
    lines = [usage.strip(), *(["", "Groups (group=option):", *listed] if listed else [])]
    lines += ["", "Values (key=value), as they stand:"]
    lines += [f"  {line}".rstrip() for line in values.strip().splitlines()]
    lines += [
        "",
        f"ddpm-{name} --cfg job shows those of the groups too, --hydra-help what else Hydra can do.",
    ]
    return "\n".join(lines)


def options_of(group: str) -> list[str]:
    """The options of a config group, by name."""
    folder = files("ddpm_cli.configs") / group
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def configs_of(group: str, name: str) -> list[str]:
    """Those of the options of a config group whose values make an `Option` of this name."""
    folder = files("ddpm_cli.configs") / group
    schema = f"/schema/{group}/{name}@"
    return [option for option in options_of(group) if schema in (folder / f"{option}.yaml").read_text()]
