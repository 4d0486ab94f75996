"""7. Sharing the cores: the speed of training alone, and of each of two runs at once."""

import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.data import overrides
from tests.benchmarks.measure import alternate, rate, spread
from tests.benchmarks.report import Section, format_spread
from tests.benchmarks.setup import Setup
from tests.benchmarks.startup import TRAIN

WITHOUT_TURNS = [
    sys.executable,
    "-c",
    "from contextlib import nullcontext; from ddpm_cli.distributed import turns; "
    "turns.Turns.turn = lambda self: nullcontext(); from ddpm_cli.cli.train import main; main()",
]
STEPS, ROW = 50, 10
"""Steps of a run, and of a row of its metrics."""


def seconds_per_image(data: Path, runs: int, command: Sequence[str] = TRAIN) -> float:
    """Return the seconds per trained image of the slowest of some runs that start together, without their start."""
    typed = ["experiment=quickstart", *overrides(data), "device=cpu", f"train.steps={STEPS}", f"train.log_every={ROW}"]
    typed += ["train.samples=1", "sampler.steps=2", "train.milestone_every=1000000", "train.warmup_steps=1"]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, str(i)) for i in range(runs)]
        started = [subprocess.Popen([*command, *typed, f"out={out}"], stdout=subprocess.DEVNULL) for out in outs]
        if any(process.wait() for process in started):
            raise RuntimeError(f"ddpm-train {' '.join(typed)}: failed")
        return 1 / min(_images_per_second(out) for out in outs)


def _images_per_second(run: Path) -> float:
    """Return the median of all rows but the first and the last, in which the other run may not train."""
    with (run / "metrics.csv").open() as file:
        speeds = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return statistics.median(speeds[1:-1])


def run(setup: Setup) -> Section:
    """Measure the speed of one run, and of two at once on the same cores."""
    works = {
        "alone": partial(seconds_per_image, setup.data, 1),
        "alone, without turns": partial(seconds_per_image, setup.data, 1, WITHOUT_TURNS),
        "each of two at once": partial(seconds_per_image, setup.data, 2),
    }
    seconds = alternate(works, setup.rounds, 0, "sharing")
    rows = [[name, format_spread(rate(1, found))] for name, found in seconds.items()]
    alone, plain, both = (spread(found).median for found in seconds.values())
    notes = [
        f"`experiment=quickstart`, {STEPS} steps, {setup.rounds} rounds; the slower of the two runs.",
        f"Goals: alone at least 0.97 of the speed without turns, result: {plain / alone:.2f}; "
        f"each of two at least 0.45 of one alone, result: {alone / both:.2f}.",
    ]
    return Section("Sharing the cores", ["training", "images/s"], rows, notes, {"seconds per image": seconds})
