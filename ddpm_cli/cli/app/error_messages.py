"""Errors of the package, of Hydra and of OmegaConf as one line: the key, its value, what is allowed, what to do."""

import re

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ddpm_cli.errors import Failure, UserError, one_of
from ddpm_cli.shell import override

EXPECTED_ERRORS = (UserError, Failure, HydraException, OmegaConfBaseException)
"""Exceptions that are reported in one line; any other one is a bug."""
PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")
PLUGIN_HINT = "; pip install 'ddpm-cli[sweep]' installs joblib, submitit and Optuna"


def message_of(error: Exception, schema: type) -> str:
    """Return the message for the user of the command with the config `schema`."""
    match error:
        case UserError() if "schedules" in schema.__annotations__:
            message = _with_schedule_names(str(error))
        case MissingConfigException(missing_cfg_file=str(file), options=options) if options:
            group, _, option = file.rpartition("/")
            hint = PLUGIN_HINT if group in PLUGIN_GROUPS else ""
            message = f"{group}={option}: must be {one_of(sorted(options))}{hint}"
        case MissingMandatoryValue():
            message = f"{error.full_key}=: missing; give it a value"
        case OverrideParseException():
            typed = re.sub(r"^\+?sampler_changes\.", "sampler.", str(error.override))
            message = f"{typed}: not readable; {_how_to_quote(typed)}"
        case OmegaConfBaseException() if error.full_key:
            message = f"{error.full_key}: {str(error.msg).splitlines()[0]}"
        case _:
            message = str(error)
    if "classes" in schema.__annotations__:  # which is typed class=
        message = re.sub(r"\bclasses(?=[=:])", "class", message)
    return on_one_line(message)


def _how_to_quote(typed: str) -> str:
    """Return what to type instead of an override that Hydra cannot read."""
    key, equals, value = typed.partition("=")
    if (
        equals
        and re.fullmatch(r"[\w.]+", key)
        and not re.match(r"[\[{(]", value)
        and not re.search("[\"']|\\${", value)
    ):
        return f"quote its value for Hydra and the shell: {override(key, value)}"
    return f"write key=value, with quotes for Hydra and the shell around a text: {override('key', 'a=b, c')}"


def on_one_line(text: str) -> str:
    """Return `text` without line breaks and control characters, which overrides and file names may contain."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _with_schedule_names(message: str) -> str:
    """Return a message about the group `schedule` for ddpm-forward, whose schedules have names."""
    if ": no such key;" in message or "; write key=value" in message:  # which name the key as it was typed
        return message
    message = message.replace("schedule.", "schedules.<name>.").replace("schedule=…", "schedules.<name>=…")
    message = re.sub("^schedule=", "schedules.", message)
    return re.sub("^schedules.<name>.timesteps", "timesteps, or schedules.<name>.timesteps", message)
