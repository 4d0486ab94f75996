"""Overrides as text that can be pasted into a shell."""

import re
import shlex

PLAIN = re.compile(r"[A-Za-z0-9_./+@%:-]+( [A-Za-z0-9_./+@%:-]+)*")
NOT_A_TEXT = re.compile(r"[0-9_.e+-]+|[+-]?(true|false|null|inf|nan)", re.IGNORECASE)
"""What Hydra may read as a number or a constant, so that a folder 1e3 would become 1000.0."""


def override(key: str, value: object) -> str:
    """Return `key=value`, quoted for Hydra and for the shell where that is needed."""
    return shlex.quote(f"{key}={quoted(str(value))}")


def quoted(text: str) -> str:
    """Return a text as the value of an override: as it is, or in quotes if Hydra would not read it as this text.

    In quotes, Hydra reads a backslash as such unless a quote follows, and OmegaConf unless `${` follows.
    """
    if PLAIN.fullmatch(text) and not NOT_A_TEXT.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', escaped)
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f'"{escaped}"'
