"""7. Scale: the same training with 1, 2 and 4 processes, which share the threads of this CPU."""

import csv
import os
import subprocess
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

from tests.benchmarks.data import overrides
from tests.benchmarks.measure import alternate, rate, spread, times_faster
from tests.benchmarks.report import Section, format_spread
from tests.benchmarks.setup import Setup
from tests.benchmarks.startup import TRAIN

PROCESSES = (1, 2, 4)
STEPS, WARM_UP = 10, 2
SPEED = ["experiment=annotated"]
CURVE = ["experiment=quickstart", "train.precision=fp32", "train.lr_decay=constant"]
"""Overrides for the measurement of the speed, and for that of the losses."""
CURVE_STEPS = 20


def rows_of(data: Path, processes: int, threads: int, *typed: str) -> list[dict[str, str]]:
    """Train with so many processes and return the rows of metrics.csv, one per step."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*TRAIN, *typed, *overrides(data), "device=cpu", f"out={folder}/run"]
        words += ["train.epochs=null", "train.log_every=1", "train.milestone_every=1000000", "train.samples=1"]
        words += [f"devices={processes}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}  # ddpm-train divides them among the processes
        ended = subprocess.run(words, env=environment, capture_output=True, text=True)
        if ended.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {ended.stderr}")
        with Path(folder, "run", "metrics.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))


def seconds_per_step(setup: Setup, processes: int) -> float:
    """Return the median seconds of the steps of a run, without the first ones."""
    typed = [*SPEED, f"train.steps={WARM_UP + STEPS}", f"train.batch_size={setup.batch_size}"]
    clock = [float(row["seconds"]) for row in rows_of(setup.data, processes, setup.threads, *typed)]
    return spread([after - before for before, after in pairwise(clock[WARM_UP - 1 :])]).median


def losses(setup: Setup, processes: int) -> list[float]:
    """Return the losses of all steps in float32, for a global batch that does not depend on `processes`."""
    typed = [*CURVE, f"train.steps={CURVE_STEPS}"]
    return [float(row["loss"]) for row in rows_of(setup.data, processes, setup.threads, *typed)]


def run(setup: Setup) -> Section:
    """Measure images per second, efficiency and the largest difference of the losses."""
    works = {str(count): partial(seconds_per_step, setup, count) for count in PROCESSES}
    seconds = alternate(works, max(2, setup.rounds // 2), 0, "scale")
    curves = {str(count): losses(setup, count) for count in PROCESSES}
    rows, apart = [], {}
    for count in works:
        apart[count] = max(abs(a - b) for a, b in zip(curves[count], curves["1"], strict=True))
        speed, efficiency = rate(setup.batch_size, seconds[count]), times_faster(seconds[count], seconds["1"])
        threads = max(1, setup.threads // int(count))
        rows.append([count, str(threads), format_spread(speed), format_spread(efficiency), f"{apart[count]:.1e}"])
    notes = [
        f"{' '.join(SPEED)} at a global batch of {setup.batch_size}, medians of {STEPS} steps, runs in alternation; "
        f"gloo. Losses: {CURVE_STEPS} steps of {' '.join(CURVE)}.",
        "Goals: 0.9 for 2 processes on 2 cores, and losses within 1e-5.",
    ]
    columns = ["processes", "threads each", "images/s", "to one process", "losses differ by at most"]
    raw = {"seconds_per_step": seconds, "losses": curves, "difference": apart}
    return Section("Scale", columns, rows, notes, raw)
