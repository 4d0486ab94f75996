"""A thing in a process of its own, which works when it is told to and waits otherwise."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import torch


class Worker:
    """`build` is called in the new process, whose torch has so many `threads`. A context manager: it ends with it."""

    def __init__(self, build: Callable[[], Any], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, threads))
        self._process.start()
        theirs.close()
        self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """`work(built, *args)` there, a function of a module."""
        self._pipe.send((work, args))
        return self._answer()[1]

    def seconds(self, work: Callable[..., Any], *args: Any) -> float:
        """How long that takes, there."""
        self._pipe.send((work, args))
        return self._answer()[0]

    def _answer(self) -> tuple[float, Any]:
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise RuntimeError("a process ended before its work did; why, it has said above") from error


class Workers(ExitStack):
    """Several, by name, one built after the other."""

    def started(self, builds: dict[str, Any], threads: int) -> dict[str, Worker]:
        return {name: self.enter_context(Worker(build, threads)) for name, build in builds.items()}


def peak_memory(_: object) -> int:
    """The most bytes of memory that the process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _serve(pipe: Connection, build: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    built = build()
    pipe.send((0.0, None))
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        result = work(built, *args)
        pipe.send((time.perf_counter() - started, result))
