"""The one exception that the commands turn into a single line and exit status 2."""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user typed or supplied, and can mend.

    The message is one line: the key, its value, what is allowed, what to do.
    """


def check(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise `UserError` naming `key`, `value` and what is `allowed`, unless `ok`."""
    if not ok:
        typed = "null" if value is None else value
        raise UserError(f"{key}={typed}: must be {allowed}")


def one_of(options: Iterable[str]) -> str:
    """`a, b or c`, for messages."""
    *head, last = options
    return f"{', '.join(head)} or {last}" if head else last
