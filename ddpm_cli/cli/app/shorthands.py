"""Rewrite what is typed in short as full overrides: keys, names of options, lone paths, `latest`, lengths.

A prefix `+` or `++` is removed, since all keys exist; what reads the overrides later need not know it.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException

from ddpm_cli.checkpoints.newest import OUTPUTS, newest_run_of, newest_runs
from ddpm_cli.cli.app.help import groups_of, option_meant
from ddpm_cli.cli.app.overrides import CHANGES, is_whole_number
from ddpm_cli.config import Train
from ddpm_cli.config.plugins import VARIABLE, check_path
from ddpm_cli.distributed.launch import is_launch_rank_zero
from ddpm_cli.errors import UserError
from ddpm_cli.shell import override, quoted

SHORT_KEYS: Mapping[str, Mapping[str, str]] = {
    "train": {field.name: f"train.{field.name}" for field in fields(Train)},
    "sample": {"steps": "sampler.steps", "class": "classes"},
    "evaluate": {"steps": "sampler.steps"},
}
"""Full keys of short ones, by command. `class` is a keyword of Python and cannot be the name of a field."""
LONE_PATH = {
    "train": "resume", "sample": "ckpt", "evaluate": "ckpt", "export": "ckpt", "import": "path", "forward": "image",
}  # fmt: skip
"""The key that a path without a key is meant for."""
RUN_KEYS = ("ckpt", "resume", "init")
PATHS = {
    "ckpt",
    "resume",
    "init",
    "out",
    "dataset.root",
    "root",
    "image",
    "mask",
    "a",
    "b",
    "samples",
    "reference",
    "path",
    "sweep.resume",
}
HYDRA_PATHS = {"hydra.sweep.dir", "hydra.run.dir"}
NUMBERED = {"image", "a", "b"}
"""Paths instead of which the number of an image may be given."""
ONE_OF_A_SWEEP = HYDRA_PATHS | {"sweep.resume"}
"""Paths of which a sweep has only one."""
NEED_A_RUN = ("sample", "export")
WITH_A_VALUE = {
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
    "--experimental-rerun",
}  # fmt: skip
"""Flags that are followed by a value."""
HELP = {"-h", "--help"}
SHOWN_INSTEAD = {"--hydra-help", "--version", "-i", "--info", "-sc", "--shell-completion", "-c", "--cfg"}
"""Flags with which no run is needed."""
MULTIRUN = {"-m", "--multirun"}
FLAGS = WITH_A_VALUE | HELP | SHOWN_INSTEAD | MULTIRUN | {"-r", "--resolve"}
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
"""Values that may follow --info."""
URL = re.compile(r"[\"']?[a-zA-Z][a-zA-Z0-9+.-]*://")
ADDED = re.compile(rf"\+{{1,2}}(?!hydra|{re.escape(CHANGES)})(?=[\w.]+=)")
"""The prefix of an override that adds a key, which is not a key of Hydra."""
NAME = re.compile(r"[A-Za-z0-9_\-]+(?![\w\-(])")
MAX_DIGITS = 1000
TOO_MANY_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
FLOATS = re.compile(r"(\d+(\.\d*)?e\+?\d\d?)(,\d+(\.\d*)?e\+?\d\d?)*", re.IGNORECASE)


def expand(command: str, schema: type, arguments: list[str]) -> list[str]:
    """Return the arguments of `ddpm-<command>` with short forms replaced by full overrides. Raise `UserError`."""
    if {*HELP, "-sc", "--shell-completion"} & {*arguments}:
        return arguments
    several = bool(MULTIRUN & {*arguments})
    words = [*_split(command, arguments)]
    flags = [word for typed, word in words if not typed]
    expanded = [_expand(command, schema, word, several) for typed, word in words if typed]
    if command in ("sample", "evaluate"):
        expanded = _with_keys_of_samplers(expanded)
    if command in NEED_A_RUN and not SHOWN_INSTEAD & {*arguments}:
        _check_run(command, expanded)
    # Flags come last, because argparse accepts no overrides on both sides of one.
    return [*expanded, *(_replaced_length(expanded) if command == "train" else []), *flags]


def _with_keys_of_samplers(words: list[str]) -> list[str]:
    """Let the keys of a sampler change the sampler of the run, if no sampler is typed.

    If a sweep has several samplers, each job sets the keys: before, Hydra has no sampler whose keys it could set.
    """
    samplers = [word.partition("=")[2] for word in words if word.startswith("sampler=")]
    if not samplers:
        return [re.sub(r"^sampler\.", f"+{CHANGES}", word) for word in words]
    if not any(isinstance(_read(sampler), Sweep) for sampler in samplers):
        return words
    split = [word.partition("=") for word in words]
    return [
        f"{key}=choice({value})"
        if key.startswith("sampler.") and value and not isinstance(_read(value), Sweep)
        else word
        for word, (key, _, value) in zip(words, split, strict=True)
    ]


def config_dir(arguments: Iterable[str]) -> str | None:
    """Return the folder that --config-dir names, if it was typed."""
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("-cd", "--config-dir"):
            return value if equals else next(words, None)
    return None


def without_plugins(arguments: Iterable[str]) -> list[str]:
    """Return the arguments without plugins=…, which is added to `DDPM_PLUGINS`, also for the processes started here."""
    left = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if key.lstrip("+") == "plugins" and equals:
            paths = _plugin_paths(word, value)
            os.environ[VARIABLE] = os.pathsep.join(filter(None, [os.environ.get(VARIABLE), *paths]))
        else:
            left.append(word)
    return left


def _plugin_paths(word: str, value: str) -> list[str]:
    paths = value if value.startswith("~") else _read(value)
    if isinstance(paths, str) and value.startswith("["):  # a list that Hydra cannot read, as in [~/mine.py]
        paths = _yaml(value)
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{word}: must be a file or a list of files, as in plugins=[./mine.py]")
    for path in paths:
        check_path(word, path)
    return paths


def _yaml(value: str) -> object:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return None


def _split(command: str, arguments: Iterable[str]) -> Iterator[tuple[bool, str]]:
    """Yield the arguments, each with whether it is an override; lone paths become overrides."""
    before = ""
    for word in arguments:
        if before in WITH_A_VALUE or (before in ("-i", "--info") and word in INFO):
            yield False, word
        elif word.startswith("-"):
            _check_flag(word)
            yield False, word
        else:
            yield True, word if "=" in word or word.startswith("~") else _lone_word(command, word)
        before = word


def _check_flag(word: str) -> None:
    name, _, value = word.partition("=")
    if name not in FLAGS:
        raise UserError(f"{word}: keys are written without dashes; write {name.lstrip('-')}={value or '…'}")


def _lone_word(command: str, word: str) -> str:
    """Return the override that a word without a key stands for. Raise `UserError`."""
    key = LONE_PATH[command]
    if word == "latest" and key in RUN_KEYS:
        return f"{key}=latest"
    try:
        exists = Path(word).expanduser().exists()
    except (OSError, ValueError):  # too long, or with a null byte
        exists = False
    if exists:
        return f"{key}={quoted(word)}"
    if word in ("help", "version"):
        raise UserError(f"{word}: did you mean ddpm-{command} --{word}?")
    meant = [f"{group}={found}" for group in groups_of(command) if (found := option_meant(group, word))]
    hint = f"did you mean {meant[0]}?" if meant else f"write key=value, or a path, which means {key}="
    raise UserError(f"{word}: no such file or folder; {hint}")


def _expand(command: str, schema: type, word: str, several: bool) -> str:
    """Return the full override that `word`, key=value, stands for. Raise `UserError`."""
    word = ADDED.sub("", word, count=1) if word.startswith("+") else word
    if TOO_MANY_DIGITS.search(word):  # Python does not convert them
        raise UserError(f"{word.partition('=')[0]}: a number has at most {MAX_DIGITS} digits; give a shorter one")
    key, equals, value = word.partition("=")
    key = SHORT_KEYS.get(command, {}).get(key, key)
    if key == "dataset" and ("/" in value or value.startswith((".", "~"))):
        raise UserError(f"{word}: must be a name; did you mean dataset=image_folder {override('dataset.root', value)}?")
    if key in PATHS | HYDRA_PATHS and URL.match(value):
        raise UserError(
            f"{word}: is a URL; mount the bucket or the server, for example with rclone, and name its folder"
        )
    if key in groups_of(command) or key == "device":
        value = NAME.sub(lambda found: option_meant(key, found[0]) or found[0], value)
    elif key in PATHS | HYDRA_PATHS and (key in ONE_OF_A_SWEEP or not (several and "," in value)):
        value = _path_meant(command, key, value)
    elif key == "classes" and not several and "," in value and value[0] not in "[\"'":
        value = f"[{value}]"
    elif FLOATS.fullmatch(value) and is_whole_number(schema, key):
        value = ",".join(f"{float(part):.0f}" for part in value.split(","))
    return f"{key}{equals}{value}"


def _path_meant(command: str, key: str, value: str) -> str:
    """Return a path in quotes if Hydra would not read it as the text that was typed. Raise `UserError` for several.

    For `latest`, a checkpoints folder or a folder of runs as ckpt or resume, return the run that it stands for, and
    print that on stderr.
    """
    read = value if value.startswith("~") else _read(value)
    if isinstance(read, bool | int | float) and key not in NUMBERED:
        read = value  # a folder 1e3 is not 1000.0
    try:
        found = newest_run_of(read) if key in RUN_KEYS and isinstance(read, str) else None
        if found is None and value[:1] not in ("'", '"') and (value.startswith("~") or Path(value).exists()):
            return quoted(value)
    except (OSError, ValueError):  # a name that is too long or contains a null byte; a later check says so
        return value
    if found is not None:
        if is_launch_rank_zero():
            print(f"ddpm-{command}: {key}={read} is {found}", file=sys.stderr)
        return quoted(str(found))
    if read == "latest" and key in RUN_KEYS:
        raise UserError(f"{key}=latest: no run below {OUTPUTS}/ has a checkpoint; ddpm-train starts one")
    if isinstance(read, Sweep):
        raise UserError(
            f"{key}={value}: has several values; add -m, which runs each of them, or quote a single path: "
            f"{override(key, value)}"
        )
    return quoted(value) if read == value and "${" not in value else value


def _read(value: str) -> object:
    """Return what Hydra reads as the value of an override.

    What it cannot read, such as lr=0.1, is a text as it was typed, unless there are quotes or an interpolation in it.
    """
    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None if re.search("[\"']|\\${", value) else value


def _check_run(command: str, overrides: Iterable[str]) -> None:
    """Raise `UserError` if ckpt is missing, with the newest runs as commands to paste."""
    if not any(word.startswith("ckpt=") for word in overrides):
        suggestions = tuple(f"  ddpm-{command} {override('ckpt', run)}" for run in newest_runs(OUTPUTS)[:3])
        hint = "the newest are:" if suggestions else "ddpm-train makes one"
        raise UserError(f"ckpt=: missing; name a run folder or a checkpoint; {hint}", suggestions)


def _replaced_length(overrides: Iterable[str]) -> list[str]:
    """Return the override that removes the length of an experiment or a run, if the other kind of length is typed.

    The lengths are train.steps and train.epochs. Raise `UserError` if both were typed.
    """
    typed = dict(word.split("=", 1) for word in overrides if "=" in word)
    given = [key for key in ("train.steps", "train.epochs") if typed.get(key, "null") != "null"]
    if len(given) == 2:
        raise UserError(f"train.steps={typed['train.steps']} train.epochs={typed['train.epochs']}: give one of the two")
    if given == ["train.epochs"] and "train.steps" not in typed:
        return ["train.steps=null"]
    if given == ["train.steps"] and "train.epochs" not in typed and {"experiment", "resume"} & typed.keys():
        return ["train.epochs=null"]
    return []
