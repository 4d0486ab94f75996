"""Overrides as text that can be pasted into a shell."""

import re
import shlex

PLAIN = re.compile(r"[\w./+@%:-]+( [\w./+@%:-]+)*")


def override(key: str, value: object) -> str:
    """Return `key=value`, quoted for Hydra and for the shell where that is needed."""
    return shlex.quote(f"{key}={quoted(str(value))}")


def quoted(text: str) -> str:
    """Return a text as the value of an override: as it is, or in quotes if Hydra would not read it as a text."""
    if PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
