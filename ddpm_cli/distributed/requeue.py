"""Jobs of SLURM that are ended and later started again, with the same command.

submitit lets SLURM signal a job before its time is over. Its handler of that signal puts the job back into the queue
and exits, so a run must save a checkpoint before the handler is called, and resume from it when the job is started
again.
"""

import os
import signal
from dataclasses import dataclass, field

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Ctrl-C, the end of a job of a cluster, a closed terminal."""
SAVES = {signal.SIGUSR1}
REQUEUES = {signal.SIGUSR1, signal.SIGUSR2}
"""The signals that submitit can be told to use; SIGUSR2 by default."""


def _requeues() -> set[signal.Signals]:
    return {number for number in REQUEUES if callable(signal.getsignal(number))}


@dataclass(frozen=True)
class Meaning:
    """What signals mean to a run when this is created.

    Attributes:
        requeues: those by which the job is put back into the queue: submitit has set a handler for them.
        stops: those that stop the run. These include `requeues`, but not SIGTERM if there are any: SLURM sends it to a
            job that is preempted, which it only puts back into the queue if the job does not end by itself.
        saves: those that ask for a checkpoint.
    """

    requeues: set[signal.Signals] = field(default_factory=_requeues)

    @property
    def stops(self) -> set[signal.Signals]:
        return (STOPS - {signal.SIGTERM}) | self.requeues if self.requeues else STOPS

    @property
    def saves(self) -> set[signal.Signals]:
        return (STOPS | SAVES) - self.stops


def is_restarted() -> bool:
    """Return whether SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
