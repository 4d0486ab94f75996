"""How things are timed: in turn, in the same run, so that a machine whose speed drifts treats all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and their quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one figure."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def alternate(
    works: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1, says: str = ""
) -> dict[str, list[float]]:
    """The seconds that each work returns, by round: A B C A B C …; the `warm_up` rounds before do not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    with tqdm(total=(warm_up + rounds) * len(works), desc=says, leave=False, disable=None) as bar:
        for i in range(warm_up + rounds):
            for name, work in works.items():
                seconds = work()
                bar.update()
                if i >= warm_up:
                    found[name].append(seconds)
    return found


def clock(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """By which factor our seconds are fewer: of each round, since the two of a round met the same machine."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def rate(amount: float, seconds: Sequence[float]) -> Spread:
    """The amount a second."""
    return spread([amount / each for each in seconds])
