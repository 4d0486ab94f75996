"""2. Input: batches from `Table` and from a DataLoader of torchvision's dataset."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tests.benchmarks.data import endless, image_loader
from tests.benchmarks.measure import alternate, clock, rate, spread, times_faster
from tests.benchmarks.report import Section, format_spread
from tests.benchmarks.setup import Setup
from tests.benchmarks.step import one_step
from tests.benchmarks.systems import OURS, systems
from tests.benchmarks.systems.ours import table_of
from tests.benchmarks.worker import Worker, Workers

TABLE, LOADER, LOADERS = "Table.batch(step)", "DataLoader, 0 workers", "DataLoader, 2 workers"
COUNTS = {TABLE: 200, LOADER: 20, LOADERS: 40}
"""Batches per round."""
PREFETCHED = 4
"""Batches that two workers have prefetched when a round starts. They are not timed."""


class Inputs:
    """The three inputs, in one process."""

    def __init__(self, data: Path, batch_size: int) -> None:
        table = table_of(data)
        self.batches: dict[str, Iterator[Any]] = {
            TABLE: (table.batch(step, batch_size) for step in range(10**9)),
            LOADER: endless(image_loader(data, batch_size, workers=0)),
            LOADERS: endless(image_loader(data, batch_size, workers=2)),
        }


def seconds_per_batch(inputs: Inputs, name: str) -> float:
    batches, count = inputs.batches[name], COUNTS[name]
    for _ in islice(batches, PREFETCHED):
        pass
    return clock(lambda: [None for _ in islice(batches, count)]) / count


def run(setup: Setup) -> Section:
    """Measure the images per second of each input, and its time as a share of a training step of ddpm-cli."""
    builds = systems(setup.data, setup.batch_size, extras=False)
    ours = [name for name in builds if name.startswith(OURS)][-1]  # the precision of train.precision=auto
    with Workers() as workers:
        inputs = workers.enter_context(Worker(partial(Inputs, setup.data, setup.batch_size), setup.threads))
        trainer = workers.enter_context(Worker(builds[ours], setup.threads))
        works = {name: partial(inputs.call, seconds_per_batch, name) for name in COUNTS}
        works["step"] = partial(trainer.seconds, one_step)
        seconds = alternate(works, setup.rounds, 2, "input")
    rows = []
    for name in COUNTS:
        share = spread([100 * a / b for a, b in zip(seconds[name], seconds["step"], strict=True)])
        faster = times_faster(seconds[TABLE], seconds[name])
        rows.append(
            [
                name,
                format_spread(rate(setup.batch_size, seconds[name])),
                format_spread(faster),
                f"{format_spread(share)} %",
            ]
        )
    slowest = min(times_faster(seconds[TABLE], seconds[name]).median for name in (LOADER, LOADERS))
    notes = [
        f"Batches of {setup.batch_size}, flipped at random and scaled to [-1, 1]; {setup.rounds} rounds.",
        "Goal: 50 times the DataLoader and under 1 % of a step. "
        f"Result: {slowest:.0f} times the faster one, {rows[0][-1]}.",
    ]
    columns = ["input", "images/s", "ours: times", f"as a share of a step of {ours}"]
    return Section("Input", columns, rows, notes, {"batch_size": setup.batch_size, "seconds_per_batch": seconds})
