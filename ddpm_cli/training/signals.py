"""Signals as flags that the training loop checks between two steps."""

import os
import signal
import sys
from types import FrameType, TracebackType

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]  # Ctrl-C, preemption by a cluster, a closed terminal
SAVES = [signal.SIGUSR1]


class Signals:
    """A context that records signals; those that the process ignored before stay ignored.

    Attributes:
        stop: the signal that asked the run to stop, or None. A second such signal acts at once, as without `Signals`.
        save: whether a checkpoint was asked for.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        before = {number: signal.getsignal(number) for number in (*STOPS, *SAVES)}
        self._before = {number: how for number, how in before.items() if how not in (signal.SIG_IGN, None)}
        if signal.SIGINT in self._before:  # from now on, Ctrl-C raises KeyboardInterrupt instead of exiting at once
            self._before[signal.SIGINT] = signal.default_int_handler

    def __enter__(self) -> "Signals":
        for number in self._before:
            signal.signal(number, self._asked_to_stop if number in STOPS else self._asked_to_save)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore_handlers(STOPS + SAVES)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = number
        self._restore_handlers(STOPS)
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")

    def _asked_to_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _restore_handlers(self, numbers: list[signal.Signals]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before[number])


def name_of(number: int) -> str:
    """Return the name of a signal, for example SIGTERM."""
    return signal.Signals(number).name
