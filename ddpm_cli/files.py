"""Atomic writing: a reader sees the old file or the complete new one, even if the disk is full."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_cli.errors import Failure

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_unfinished: set[Path] = set()
"""Temporary files that are being written."""


class NoRoom(Failure):
    """The disk has no room for a file of `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size)  # both, so that the exception can be pickled

    def __str__(self) -> str:
        path, size = self.args
        return f"{path}: no room on the disk for this file, which needs {amount(size)}; make some"


@contextmanager
def atomic(path: Path, size: int) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it is renamed to `path` on success and removed otherwise.

    `size` is the approximate size in bytes. Raise `NoRoom` if the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _unfinished.add(partial)
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
        _unfinished.discard(partial)


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Raise `NoRoom`."""
    with atomic(path, len(content)) as partial:
        partial.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk, so that a power failure cannot undo a rename there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_room(error: BaseException | None) -> bool:
    """Return whether a full disk, a quota or a file size limit caused an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def remove_unfinished() -> None:
    """Remove the files that this process is writing, before it is ended."""
    for partial in [*_unfinished]:  # other threads may be writing
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove the temporary files of killed writers below `folder`, where no process may be writing."""
    for partial in folder.rglob(".*.tmp"):
        partial.unlink(missing_ok=True)


def amount(size: float) -> str:
    """Return a size such as `312 bytes`, `1.5 KiB` or `20.3 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def cache_folder() -> Path:
    """Return the folder for downloads, decoded images and compiled code, which all runs of a user share."""
    return Path(os.environ.get("DDPM_CACHE", "~/.cache/ddpm_cli")).expanduser()
