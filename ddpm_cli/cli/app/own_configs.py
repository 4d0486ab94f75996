"""YAML files of a user's own, in --config-dir, hydra.searchpath or a plugin: check them before Hydra reads them."""

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ddpm_cli.cli.app.help import SETTING_GROUPS, forget_options
from ddpm_cli.config import EXTRA_CONFIGS, GROUPS
from ddpm_cli.errors import UserError

FIRST_LINE = "# @package _global_"
MAX_BYTES = 2**20


def add_configs(name: str) -> None:
    """Also find options in the folder `name`, which is laid out like configs/. Raise `UserError`."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"--config-dir={name}: no such folder; name one that contains experiment/ or other groups")
    if folder not in EXTRA_CONFIGS:
        EXTRA_CONFIGS.append(folder)
        forget_options()


def check_configs(folders: Iterable[Path], arguments: Iterable[str]) -> None:
    """Raise `UserError` that names the first file Hydra could not read, and why.

    Files of `folders` are checked if an argument mentions their names, or if such a file does.
    """
    left = [(folder, file) for folder in folders for file in _config_files(folder)]
    words = _words(" ".join(arguments))
    while mentioned := [place for place in left if place[1].stem in words]:
        for folder, file in mentioned:
            try:
                words |= _words(_checked_text(folder, file))
            except UserError as error:
                raise UserError(f"{file}: {error}") from error
        left = [place for place in left if place not in mentioned]


def _words(text: str) -> set[str]:
    return {*re.findall(r"[\w.-]+", text)}


def search_path(arguments: Iterable[str]) -> list[Path]:
    """Return the folders that hydra.searchpath=[…] names. Hydra warns of those that are missing."""
    found: list[str] = []
    for word in arguments:
        key, _, value = word.partition("=")
        if key.lstrip("+") == "hydra.searchpath":
            with suppress(HydraException):  # a later check says so
                listed = OverridesParser.create().parse_override(f"path={value}").value()
                found += map(str, listed if isinstance(listed, list) else [])
    paths = [Path(name.removeprefix("file://")) for name in found]
    return [path for path in paths if path.is_dir()]


def _config_files(folder: Path) -> Iterator[Path]:
    """Yield the files that Hydra may read: those in the folder, and those of groups at any depth."""
    yield from sorted(folder.glob("*.yaml"))
    for group in sorted({*SETTING_GROUPS, "hydra", *(base.group for base in GROUPS)}):
        yield from sorted((folder / group).rglob("*.yaml"))


def _checked_text(folder: Path, file: Path) -> str:
    """Return the text of a config file. Raise `UserError`."""
    if not file.is_file():  # opening a pipe would block
        raise UserError("is not a file; remove it")
    try:
        content = file.read_bytes() if file.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); make it readable") from error
    if content is None:
        raise UserError(f"has more than {MAX_BYTES} bytes; is it a config file?")
    text = _decoded(content)
    group = file.relative_to(folder).parts[0]
    if group in SETTING_GROUPS and text.split("\n", 1)[0].strip() != FIRST_LINE:
        raise UserError(f"the first line must be: {FIRST_LINE}")
    try:
        found = FileConfigSource("check", str(folder)).load_config(file.relative_to(folder).as_posix())
    except Exception as error:  # OmegaConf, PyYAML and Hydra raise many types
        raise UserError(f"is not readable as YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(found.config, DictConfig):
        raise UserError("must contain keys with values, as in train: {steps: 3}")
    _check_content(group, found.header.get("package"), OmegaConf.to_container(found.config))
    return text


def _check_content(group: str, package: str | None, content: Any) -> None:
    """Raise `UserError` for what Hydra would not accept, or would take for something else."""
    options = {base.group for base in GROUPS}
    if group in options and package not in (None, "_group_", group):
        raise UserError(f"# @package {package}: an option of {group} has no such line; remove it")
    defaults = content.get("defaults", [])
    entries = defaults if isinstance(defaults, list) else [None]
    if not all(isinstance(entry, str) or (isinstance(entry, dict) and len(entry) == 1) for entry in entries):
        raise UserError("defaults: must be a list of entries, each on its own line, as in - override /model: tiny")
    for key in sorted(options & content.keys()):
        if group in SETTING_GROUPS and isinstance(content[key], str):
            raise UserError(f"{key}: {content[key]}: belongs below defaults: as - override /{key}: {content[key]}")


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError("starts with a byte order mark; save it as UTF-8 without one")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"line {line} has the byte 0x{content[error.start]:02x}, which is not UTF-8; save it as UTF-8"
        ) from error


def includes_itself() -> UserError:
    """Return the error for a file whose defaults lead to itself, for which Hydra raises `RecursionError`."""
    return UserError("defaults: a file of your own includes itself, directly or through others; remove that entry")
