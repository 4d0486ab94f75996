"""An object in a separate process, which runs functions on request."""

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
    """The result of `build` in a new process with `threads` torch threads. Leaving the context ends the process."""

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

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return `function(built, *args)`, run in the process. The function must be importable."""
        self._pipe.send((function, args))
        return self._answer()[1]

    def seconds(self, function: Callable[..., Any], *args: Any) -> float:
        """Return the seconds of such a call, measured in the process."""
        self._pipe.send((function, args))
        return self._answer()[0]

    def _answer(self) -> tuple[float, Any]:
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise RuntimeError("a process ended before its work was done; its error is printed above") from error


class Workers(ExitStack):
    """Several workers by name, started one after the other."""

    def started(self, builds: dict[str, Any], threads: int) -> dict[str, Worker]:
        return {name: self.enter_context(Worker(build, threads)) for name, build in builds.items()}


def peak_memory(_: object) -> int:
    """Return the peak memory of the process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _serve(pipe: Connection, build: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    built = build()
    pipe.send((0.0, None))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        result = function(built, *args)
        pipe.send((time.perf_counter() - started, result))
