"""Programs that use all cores of a CPU take turns, so that two at once each run at half their speed.

The threads of torch wait busily for each other, in oneDNN for any length of time. If two programs have as many threads
as there are cores, a thread often waits for one that is not running, and both take ten times as long or more.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import IO, TypeVar

import torch

from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.waiting import cores

T = TypeVar("T")
POLL_SECONDS = 0.0005
PATIENCE = 60.0
"""Seconds to wait for a turn: the program that has it may have been suspended."""
TRUCE = 600.0
"""Seconds without turns after none came."""


def cpu_turn(device: torch.device) -> AbstractContextManager[None]:
    """Return a context for a part of a computation on `device`, in which no other program of this user has a turn.

    Only a single process on a CPU takes turns, and only if two like it have more threads than there are cores.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or collectives.world_size() > 1 or threads == 1 or 2 * threads <= cores():
        return nullcontext()
    return turns().turn()


def in_turns(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yield the items of an iterator, each of which is computed on `device` in a turn of its own."""
    while True:
        with cpu_turn(device):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


@cache
def turns() -> "Turns":
    """Return the turns of this user on this machine."""
    return Turns(Path(tempfile.gettempdir(), f"ddpm-cli-{os.getuid()}"))  # on this machine, unlike a home folder


class Turns:
    """A turn that one process has at a time. The system ends the turn of a process that is killed.

    Two locks in a file make it fair: a process waits for the turn with the lock `next`, and one that has just had the
    turn has to get `next` first.

    Args:
        path: of the file. If it cannot be opened, nobody waits.
    """

    def __init__(self, path: Path) -> None:
        self._truce = 0.0
        self._locks: list[IO[bytes]] = []
        try:
            self._locks = [path.with_name(f"{path.name}.{name}").open("ab") for name in ("next", "turn")]
        except OSError:
            self._truce = float("inf")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, at most `PATIENCE` seconds, and keep it within the context."""
        start = time.monotonic()
        if start < self._truce:
            yield
            return
        following, turn = self._locks
        try:
            if not (_locked(following, start + PATIENCE) and _locked(turn, start + PATIENCE)):
                self._truce = time.monotonic() + TRUCE
            _unlock(following)
            yield
        finally:
            _unlock(following)
            _unlock(turn)


def _locked(file: IO[bytes], deadline: float) -> bool:
    """Lock a file; return False if another process holds the lock until the deadline."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
        time.sleep(POLL_SECONDS)


def _unlock(file: IO[bytes]) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)
