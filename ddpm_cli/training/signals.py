"""Signals as questions that the training loop answers between two steps."""

import os
import signal
import sys
from types import FrameType, TracebackType

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]  # Ctrl-C, a cluster's preemption, a terminal closed
SAVES = [signal.SIGUSR1]


class Signals:
    """While entered, notes what the process is asked for; those that it was told to ignore stay ignored.

    stop: the signal that asks for the end, or None. save: whether a checkpoint is asked for. The second signal
    that asks for the end acts as if there were no `Signals`: at once.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        before = {number: signal.getsignal(number) for number in (*STOPS, *SAVES)}
        self._before = {number: how for number, how in before.items() if how not in (signal.SIG_IGN, None)}

    def __enter__(self) -> "Signals":
        for number in self._before:
            signal.signal(number, self._asked_to_stop if number in STOPS else self._asked_to_save)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back(STOPS + SAVES)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = number
        self._give_back(STOPS)
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")

    def _asked_to_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _give_back(self, numbers: list[signal.Signals]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before[number])
