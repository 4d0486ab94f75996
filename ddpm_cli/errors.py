"""The exceptions that the commands turn into a single line and an exit status."""

from collections.abc import Iterable, Sequence

NAMED = 5
"""Number of names that `first_of` shows by default."""


class UserError(Exception):
    """An error in what the user typed or supplied; exit status 2.

    The message is one line: the key, its value, what is allowed, what to do. `suggestions` are commands that are
    printed below it.
    """

    def __init__(self, message: str, suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message, suggestions)  # both, so that the exception can be pickled
        self.suggestions = suggestions

    def __str__(self) -> str:
        return str(self.args[0])


class Failure(Exception):
    """An error that is not the user's mistake, for example a full disk; exit status 1. The message is one line."""


class Stopped(Exception):
    """A signal ended the command; exit status 128 + its number. The message is one line and says what was saved."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(signal, message)  # both, so that the exception can be pickled
        self.status = 128 + signal

    def __str__(self) -> str:
        return str(self.args[1])


def check(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise `UserError` that names `key`, `value` and what is `allowed`, unless `ok`."""
    if not ok:
        typed = "null" if value is None else value
        raise UserError(f"{key}={typed}: must be {allowed}")


def first_of(names: Sequence[str], count: int = NAMED) -> str:
    """Return `a, b, c`, for messages; of more than `count` names only the first ones and an ellipsis."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def one_of(options: Iterable[str]) -> str:
    """Return `a, b or c`, for messages."""
    *head, last = options
    return f"{', '.join(head)} or {last}" if head else last
