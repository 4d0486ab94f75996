"""5. Start-up: from typing a command to what it was typed for, in fresh processes."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.benchmarks.data import overrides
from tests.benchmarks.measure import alternate, clock, spread
from tests.benchmarks.report import Section, of
from tests.benchmarks.setup import Setup

TRAIN = [sys.executable, "-c", "from ddpm_cli.cli.train import main; main()"]
PATIENCE = 300
"""Seconds."""


def finished(words: list[str]) -> float:
    """Until a command has ended."""
    return clock(partial(subprocess.run, words, check=True, capture_output=True))


def until_first_step(data: Path) -> float:
    """Until the first row of metrics.csv stands on the disk, a step of 128 images after its beginning."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run", "metrics.csv")
        typed = ["experiment=annotated", *overrides(data), "train.log_every=1", f"out={metrics.parent}", "device=cpu"]
        started = time.perf_counter()
        process = subprocess.Popen([*TRAIN, *typed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    raise RuntimeError(f"ddpm-train {' '.join(typed)}: made no step")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def run(setup: Setup) -> Section:
    """Seconds of each command."""
    works = {
        'python -c "pass"': partial(finished, [sys.executable, "-c", "pass"]),
        'python -c "import torch"': partial(finished, [sys.executable, "-c", "import torch"]),
        "ddpm-train --help": partial(finished, [*TRAIN, "--help"]),
        "ddpm-train --cfg job": partial(finished, [*TRAIN, "--cfg", "job"]),
        "ddpm-train experiment=annotated, its first step done": partial(until_first_step, setup.data),
    }
    seconds = alternate(works, setup.rounds, 1, "start-up")
    rows = [[name, of(spread(found))] for name, found in seconds.items()]
    notes = [
        f"Fresh processes, {setup.rounds} rounds after one that warms the disk's cache.",
        f"Goal, --help under 0.7 s: {spread(seconds['ddpm-train --help']).median:.2f} s.",
    ]
    return Section("Start-up", ["command", "seconds"], rows, notes, {"seconds": seconds})
