"""Timing of several systems in alternation, so that a drift of the machine's speed affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some values."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def alternate(
    functions: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1, description: str = ""
) -> dict[str, list[float]]:
    """Call the functions in turn, A B C A B C …, and return their seconds by round, without the `warm_up` rounds."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    with tqdm(total=(warm_up + rounds) * len(functions), desc=description, leave=False, disable=None) as bar:
        for i in range(warm_up + rounds):
            for name, function in functions.items():
                seconds = function()
                bar.update()
                if i >= warm_up:
                    found[name].append(seconds)
    return found


def clock(function: Callable[[], object]) -> float:
    """Return the seconds that a call of `function` takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return by which factor `ours` is faster, computed per round, because the machine is the same within a round."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def rate(amount: float, seconds: Sequence[float]) -> Spread:
    """Return the amount per second."""
    return spread([amount / each for each in seconds])
