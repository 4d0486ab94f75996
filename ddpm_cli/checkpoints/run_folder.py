"""Run folders: what is in them, claiming a new one, and the lock of the process that trains in one."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_cli.errors import UserError
from ddpm_cli.files import remove_partials

log = logging.getLogger(__name__)

NOTES = ".hydra"
LOCK = ".lock"
OURS = (
    NOTES,
    LOCK,
    "train.log",
    "metrics.csv",
    "loss.png",
    "evaluations.jsonl",
    "checkpoints",
    "samples",
    "tensorboard",
    "wandb",
)
"""Names of what a run writes into its folder."""
FOLDERS = (NOTES, "checkpoints", "samples", "tensorboard", "wandb")
"""Those of them that are folders."""
BEFORE_A_CHECKPOINT = {NOTES, LOCK, "train.log", "checkpoints"}


def new_folder(folder: Path) -> None:
    """Create `folder`. Raise `UserError` if it is not empty."""
    if _made(folder):
        raise UserError(f"out={folder}: already holds files; choose another folder")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, new or empty, a run's own while it lasts; of two processes that claim one at once, one wins.

    A run that was ended before its first checkpoint leaves nothing worth keeping: its folder is claimed anew. Raises
    `UserError` where there is anything else.
    """
    _check_free(folder)
    with locked("out", folder):
        _check_free(folder)  # since another process may have had it meanwhile
        (folder / NOTES).mkdir(exist_ok=True)
        remove_partials(folder)
        yield


@contextmanager
def reopened(key: str, folder: Path) -> Iterator[None]:
    """Hold the folder of a run to resume. Raise `UserError` if another process holds it or it has links or pipes."""
    for name in OURS:
        path = folder / name
        if path.is_symlink():
            raise UserError(
                f"{key}={folder}: its {name} is a symbolic link, which a run does not write through; remove it"
            )
        if path.exists() and not (path.is_dir() if name in FOLDERS else path.is_file()):  # a pipe would be waited for
            raise UserError(f"{key}={folder}: its {name} is not what a run leaves under that name; remove it")
    with locked(key, folder):
        remove_partials(folder)
        yield


@contextmanager
def locked(key: str, folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which the kernel releases even after a crash. Raise `UserError` if it is taken."""
    try:
        stream = (folder / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written to ({error.strerror}); choose another folder") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read(200).strip() or "another process"
            raise UserError(f"{key}={folder}: {holder} is at work there; wait for its end, or end it") from error
        except OSError as error:
            log.warning(
                "%s: its file system has no locks (%s); let no other process work there", folder, error.strerror
            )
        with contextlib.suppress(OSError):  # a full disk: then the message above lacks a name
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
        yield


@contextmanager
def log_into(file: Path) -> Iterator[None]:
    """Write all log lines to `file` too, with the time; errors of a full disk are ignored."""
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # it would print a traceback
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _check_free(folder: Path) -> None:
    if not _made(folder):
        return
    names = {path.name for path in folder.iterdir()}
    barely_begun = LOCK in names and names <= BEFORE_A_CHECKPOINT and not any(folder.glob("checkpoints/*.pt"))
    if NOTES in names and not barely_begun:
        raise UserError(
            f"out={folder}: already holds a run; resume={folder} goes on with it, another out=… starts anew"
        )
    if not barely_begun:
        raise UserError(f"out={folder}: already holds files; choose another folder")


def _made(folder: Path) -> bool:
    """Create `folder` and return whether it contains anything. Raise `UserError` if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return any(folder.iterdir())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"out={folder}: cannot be created ({reason}); choose another folder") from error
