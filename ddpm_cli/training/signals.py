"""Signals as flags that the training loop checks between two steps."""

import os
import signal
import sys
from collections.abc import Iterable
from types import FrameType, TracebackType

from ddpm_cli.distributed.requeue import STOPS, Meaning


class Signals:
    """A context that records signals; those that the process ignored before stay ignored.

    A signal by which a job of SLURM is put back into the queue also asks the run to stop. The handler that does so is
    called at the end of the context, when a checkpoint has been written.

    Attributes:
        stop: the signal that asked the run to stop, or None. A second such signal acts at once, as without `Signals`.
        save: whether a checkpoint was asked for.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._meaning = Meaning()
        before = {number: signal.getsignal(number) for number in self._meaning.stops | self._meaning.saves}
        self._before = {number: how for number, how in before.items() if how not in (signal.SIG_IGN, None)}
        if signal.SIGINT in self._before:  # from now on, Ctrl-C raises KeyboardInterrupt instead of exiting at once
            self._before[signal.SIGINT] = signal.default_int_handler

    def __enter__(self) -> "Signals":
        for number in self._before:
            signal.signal(number, self._asked_to_stop if number in self._meaning.stops else self._asked_to_save)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore_handlers(self._before)
        if error is not None and self.stop in self._meaning.requeues:
            signal.raise_signal(self.stop)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = number
        self._restore_handlers(STOPS)
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")

    def _asked_to_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _restore_handlers(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before[number])


def name_of(number: int) -> str:
    """Return the name of a signal, for example SIGTERM."""
    return signal.Signals(number).name
