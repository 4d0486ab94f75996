"""End the bad runs of a sweep early, by asynchronous successive halving (ASHA, Li et al. 2020, arXiv:1810.05934).

The rungs of a sweep are the milestones first, first * eta, first * eta^2, … of its runs. A run that reaches a rung
writes its value to rungs.csv in the folder of the sweep, and goes on if the value is among the best 1/eta of those at
this rung (Algorithm 2). In the paper, a run that is not may go on later, when other values have arrived. Here it ends
for good.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.config import Sweep, Train
from ddpm_cli.sweeps.jobs_csv import append_row, rows_of

if TYPE_CHECKING:
    from ddpm_cli.sampling.milestone import Milestone

log = logging.getLogger(__name__)

FILE = "rungs.csv"


@dataclass(frozen=True)
class Rung:
    """A row of rungs.csv: the value of a job at the rung with a number from 0 up, and whether that ended the job."""

    job: int
    rung: int
    value: float
    pruned: bool


@dataclass(frozen=True)
class Pruner:
    """Called at each milestone of a job of a sweep; returns True if the job ends.

    Attributes:
        folder: of the sweep.
        job: its number.
        device: that held-out losses are computed on.
    """

    folder: Path
    job: int
    sweep: Sweep
    train: Train
    device: str

    def __call__(self, milestone: "Milestone") -> bool:
        rung = rung_of(milestone.number, self.sweep.first_rung, self.sweep.reduction_factor)
        if rung is None or milestone.step == milestone.steps:
            return False
        value = self._value(milestone)
        others = {row.job: row.value for row in read_rungs(self.folder) if row.rung == rung and row.job != self.job}
        pruned = not is_among_best(value, others.values(), self.sweep.reduction_factor)
        cells = [str(self.job), str(rung), repr(value), "pruned" if pruned else ""]
        append_row(self.folder / FILE, cells)
        if pruned:
            log.info("Pruned at step %d: %.6g is not among the best of %d runs", milestone.step, value, len(others) + 1)
        return pruned

    def _value(self, milestone: "Milestone") -> float:
        """Return the held-out loss if it is what the run reports, else the training loss."""
        if self.train.report != "val_loss":
            return milestone.loss
        from ddpm_cli.evaluation.run_metrics import val_loss_of_checkpoint  # imports torch

        return val_loss_of_checkpoint(self.train, milestone.checkpoint, self.device)


def rung_of(milestone: int, first: int, factor: int) -> int | None:
    """Return the number of the rung at a milestone, or None if there is none."""
    rung = 0
    while first * factor**rung < milestone:
        rung += 1
    return rung if first * factor**rung == milestone else None


def is_among_best(value: float, others: Collection[float], factor: int) -> bool:
    """Return whether `value` is among the lowest 1/factor of itself and `others`, rounded down, but at least one value.

    Values that are not finite are the worst.
    """
    best = max(1, (len(others) + 1) // factor)
    return math.isfinite(value) and sum(other < value for other in others) < best


def read_rungs(folder: Path) -> list[Rung]:
    """Return the rows of rungs.csv in the folder of a sweep; incomplete ones are left out."""
    return [rung for rung in map(_parse_row, rows_of(folder / FILE)) if rung is not None]


def is_pruned(folder: Path, job: int) -> bool:
    """Return whether a job of a sweep has been ended early."""
    return any(rung.pruned for rung in read_rungs(folder) if rung.job == job)


def _parse_row(row: list[str]) -> Rung | None:
    try:
        job, rung, value, pruned = row
        return Rung(int(job), int(rung), float(value), pruned == "pruned")
    except ValueError:
        return None
