"""What a run has seen at a step, and what is due there: examples, epochs, milestones and its length.

All of it is a pure function of the step and of the phases of the run. Checkpoints store the phases, so a change of the
batch size or of the data on resume does not change what was seen before.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from ddpm_cli.config import Interval, Train

MAX_PHASES = 1000
MAX_EXAMPLES = 10**15


class Phase(NamedTuple):
    """Steps with the same batch size and number of examples, after the first `start` steps of a run.

    examples: size of the dataset, or 0 if the version that trained them did not store it.
    """

    start: int
    batch_size: int
    examples: int


@dataclass(frozen=True)
class Timeline:
    """The steps of a run. The last phase lasts to the end of the run."""

    train: Train
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        if self.train.epochs is None:
            return self.train.steps or 0
        start = self.phases[-1].start
        return start + math.ceil(self._steps_of(self.train.epochs) - self._place(start))

    @property
    def offset(self) -> int:
        """What to add to step * batch_size to get the place of a batch of the last phase in the order of examples."""
        start, batch_size, examples = self.phases[-1]
        return math.floor(self.epochs(start) * examples) - start * batch_size

    def images(self, step: int) -> int:
        """Return the number of examples seen in the first `step` steps."""
        return images_seen(self.phases, step)

    def epochs(self, step: int) -> Fraction:
        """Return the number of epochs in the first `step` steps, each on the data of its time."""
        i = max(0, bisect_left(self.phases, (step,)) - 1)
        start, batch_size, examples = self.phases[i]
        return self._epochs_before[i] + Fraction((step - start) * batch_size, examples)

    def intervals(self, every: Interval, step: int) -> int:
        """Return the number of whole intervals in the first `step` steps."""
        if every.in_epochs:
            return math.floor(self._place(step) / self._steps_of(every.length))
        return math.floor(step / every.length)

    def milestones_until(self, step: int) -> int:
        """Return the number of regular milestones in the first `step` steps. A run also has one at its end."""
        return self.intervals(self.train.milestone_interval, step)

    def is_milestone(self, step: int) -> bool:
        """Return whether a checkpoint and a grid are due after `step` steps (1 is the first)."""
        return self.milestones_until(step) > self.milestones_until(step - 1)

    def milestones_after(self, step: int) -> int:
        """Return the number of milestones after `step`, a step of the last phase; that at the end is included."""
        every = self.train.milestone_interval
        each_step = (self._steps_of(every.length) if every.in_epochs else every.length) < 1
        regular = self.steps - step if each_step else self.milestones_until(self.steps) - self.milestones_until(step)
        return regular + (step < self.steps and not self.is_milestone(self.steps))

    @cached_property
    def _epochs_before(self) -> list[Fraction]:
        """Number of epochs before each phase."""
        found = [Fraction(0)]
        for (start, batch_size, examples), following in zip(self.phases, self.phases[1:], strict=False):
            found.append(found[-1] + Fraction((following.start - start) * batch_size, examples))
        return found

    def _steps_of(self, epochs: float) -> float:
        """Return the number of steps of the last phase in so many epochs."""
        _, batch_size, examples = self.phases[-1]
        return epochs * examples / batch_size

    def _place(self, step: int) -> Fraction:
        """Return the number of steps after which a run is as far as this one at `step`, if all are of the last phase.

        This is `step` itself in a run with a single phase, whose milestones and length therefore have no other rounding
        than that of `_steps_of`.
        """
        _, batch_size, examples = self.phases[-1]
        return self.epochs(step) * examples / batch_size


def new_timeline(train: Train, examples: int) -> Timeline:
    """Return the timeline of a run on a dataset with so many examples that has a single phase."""
    return Timeline(train, (Phase(0, train.batch_size, examples),))


def stored_timeline(train: Train, examples: int, phases: Sequence[Sequence[int]]) -> Timeline:
    """Return the timeline that a checkpoint describes. `examples` replaces unknown numbers of examples."""
    return Timeline(train, tuple(Phase(start, size, count or examples) for start, size, count in phases))


def resumed_timeline(train: Train, examples: int, phases: Sequence[Sequence[int]], step: int) -> Timeline:
    """Return the timeline of a run that continues after `step`, whose checkpoint has `phases`.

    A new phase starts if the batch size or the number of examples has changed.
    """
    before = [phase for phase in stored_timeline(train, examples, phases).phases if phase.start < step]
    now = Phase(step if before else 0, train.batch_size, examples)
    goes_on = bool(before) and before[-1][1:] == now[1:]
    return Timeline(train, (*before,) if goes_on else (*before, now))


def images_seen(phases: Sequence[Sequence[int]], step: int) -> int:
    """Return the number of examples seen in the first `step` steps of a run with these phases."""
    ends = [*(start for start, _, _ in phases[1:]), step]
    return sum(max(0, min(step, end) - start) * size for (start, size, _), end in zip(phases, ends, strict=True))


def are_phases(value: Any, step: int) -> bool:
    """Return whether a checkpoint of `step` may have these phases."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PHASES:
        return False
    if not all(isinstance(one, list) and [*map(type, one)] == [int, int, int] for one in value):
        return False
    starts = [start for start, _, _ in value]
    in_order = starts[0] == 0 and sorted({*starts}) == starts and starts[-1] <= step
    return in_order and all(1 <= size <= 10**6 and 0 <= count <= MAX_EXAMPLES for _, size, count in value)
