"""Hydra's and OmegaConf's errors as one line: the key, its value, what is allowed, what to do."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from ddpm_cli.cli.help import configs_of
from ddpm_cli.config import GROUPS, Option, option_name
from ddpm_cli.errors import Failure, UserError, one_of

FORESEEN = (UserError, Failure, HydraException, OmegaConfBaseException)
"""Exceptions that are reported in one line; any other is a bug."""
PLUGGED = ("hydra/launcher", "hydra/sweeper")
PLUGINS = "; pip install 'ddpm-cli[sweep]' brings joblib, submitit and Optuna"
TYPES = {"Integer": "a whole number", "Float": "a number", "String": "a text"}


def one_line(error: Exception, schema: type) -> str:
    """`error` for the person who typed the command whose config is a `schema`."""
    match error:
        case UserError():
            message = str(error)
            if "schedules" in schema.__annotations__:  # ddpm-forward has several
                message = message.replace("schedule.", "schedules.<name>.").replace("schedule=…", "schedules.<name>=…")
                message = re.sub("^schedule=", "schedules.", message)
                message = re.sub("^schedules.<name>.timesteps", "timesteps, or schedules.<name>.timesteps", message)
        case MissingConfigException(missing_cfg_file=str(file), options=options) if options:
            group, _, option = file.rpartition("/")
            message = f"{group}={option}: must be {one_of(sorted(options))}{PLUGINS if group in PLUGGED else ''}"
        case MissingMandatoryValue():
            message = f"{error.full_key}=: missing; give it a value"
        case OverrideParseException():
            message = f"{error.override}: not readable; write key=value, and quote it against the shell"
        case ConfigCompositionException(__cause__=ValidationError() as cause):
            message = _wrong_type(str(error), cause)
        case ConfigCompositionException() if "ConfigKeyError" in str(error):
            message = _lacking_key(str(error))
        case ConfigCompositionException():
            message = _unknown_key(str(error), schema)
        case OmegaConfBaseException() if missing := re.search(r"missing \d+ required .*?: '(\w+)'", str(error.msg)):
            message = f"{error.full_key}.{missing[1]}: needed; leave it as it is".lstrip(".")
        case OmegaConfBaseException() if error.full_key:
            message = f"{error.full_key}: {str(error.msg).splitlines()[0]}"
        case _:
            message = str(error)
    return on_one_line(message)


def on_one_line(text: str) -> str:
    """`text` as a terminal can show it in one line: what is typed and the names of files may be anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _wrong_type(message: str, cause: ValidationError) -> str:
    typed = re.search(r"override '?(.*?)'?$", message.splitlines()[0])
    key = typed[1] if typed else f"{cause.full_key}={cause.value}"
    if "is not a ListConfig" in str(cause.msg):
        return f"{key}: must be a list, as in key=[1,2]"
    if "is not a valid bool" in str(cause.msg):
        return f"{key}: must be true or false"
    if "is not Optional" in str(cause.msg):
        return f"{key}: must not be null"
    wanted = re.search(r"could not be converted to (\w+)", str(cause.msg))
    if wanted and wanted[1] in TYPES:
        return f"{key}: must be {TYPES[wanted[1]]}"
    return f"{key}: {str(cause.msg).splitlines()[0]}"


def _lacking_key(message: str) -> str:
    """A config file sets what the option chosen beside it does not have."""
    found = re.search(r"In '(\S+?)(?:/(\S+))?': .*full_key: (([\w.]+)\.\w+)", " ".join(message.split()))
    if not found:
        return message
    group, option, key, other = found.groups()
    if not option:
        return f"{other}: must have {key.rpartition('.')[2]}, which ddpm-{group} sets; choose another option for it"
    return f"{group}={option}: sets {key}, which the {other} chosen beside it does not have; choose another {other}"


def _unknown_key(message: str, schema: type) -> str:
    if taken := re.match(r"Error merging override (~.*)", message):
        return f"{taken[1]}: cannot be taken away; leave it as it is"
    unknown = re.search(r"Could not override '(.+?)'", message)
    if not unknown:
        return message
    key = unknown[1]
    keys: dict[str, list[str]] = {}
    for known, owner in _known_keys(schema):
        keys.setdefault(known, []).append(owner)
    if owners := [owner for owner in keys.get(key, []) if owner]:
        return f"{key}: only {one_of(owners)} has this key; choose it too, or leave the key out"
    nested = [known for known in keys if known.endswith(f".{key}")]
    near = nested or difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {one_of(near)}?" if near else "--cfg job lists the keys"
    return f"{key}: no such key; {hint}"


def _known_keys(schema: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key below `schema`, and the option, `group=name`, that it belongs to, or nothing."""
    for key, hint in get_type_hints(schema).items():
        if not any(field.name == key for field in fields(schema)):
            continue
        yield prefix + key, ""
        for kind in get_args(hint) or (hint,):
            if get_origin(hint) is dict and kind in GROUPS:
                for option in GROUPS[kind]:
                    yield from _known_keys(option, f"{prefix}{key}.{option_name(option)}.")
            else:
                yield from _keys_of(kind, prefix + key)


def _keys_of(kind: Any, group: str) -> Iterator[tuple[str, str]]:
    if kind in GROUPS:
        for option in GROUPS[kind]:
            for key, _ in _known_keys(option, f"{group}."):
                for name in configs_of(group, option_name(option)):
                    yield key, f"{group}={name}"
    elif is_dataclass(kind) and isinstance(kind, type) and not issubclass(kind, Option):
        yield from _known_keys(kind, f"{group}.")
