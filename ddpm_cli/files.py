"""Writing files so that a reader sees the old one or the whole new one, and a full disk costs neither."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_cli.errors import Failure

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoom(Failure):
    """A file of `size` bytes that the disk has no room for."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size)  # both, so that it can be sent from one process to another

    def __str__(self) -> str:
        path, size = self.args
        return f"{path}: no room on the disk for this file, which needs {amount(size)}; make some"


@contextmanager
def atomic(path: Path, size: int) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` if all went well, else it is removed.

    size: how many bytes that takes, about. Raises `NoRoom` where there are not so many.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except Exception as error:
        if no_room(error):
            raise NoRoom(path, size) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Make `path` a file of this content, whole or not at all. Raises `NoRoom`."""
    with atomic(path, len(content)) as partial:
        partial.write_bytes(content)


def no_room(error: BaseException | None) -> bool:
    """Whether a full disk, or a limit like it, is at the bottom of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed left below `folder`. Nobody may be writing there."""
    for partial in folder.rglob(".*.tmp"):
        partial.unlink(missing_ok=True)


def amount(size: float) -> str:
    """`312 bytes`, `1.5 KiB`, `20.3 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
