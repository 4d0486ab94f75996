"""5. Start-up: the time from a command to its result, in new processes."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.benchmarks.data import overrides
from tests.benchmarks.measure import alternate, clock, spread
from tests.benchmarks.report import Section, format_spread
from tests.benchmarks.setup import Setup

TRAIN = [sys.executable, "-c", "from ddpm_cli.cli.train import main; main()"]
TIMEOUT = 300
"""In seconds."""


def seconds_to_exit(words: list[str]) -> float:
    """Return the seconds until a command has ended."""
    return clock(partial(subprocess.run, words, check=True, capture_output=True))


def seconds_to_first_step(data: Path) -> float:
    """Return the seconds until metrics.csv has its first row, after one step of 128 images."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run", "metrics.csv")
        typed = ["experiment=annotated", *overrides(data), "train.log_every=1", f"out={metrics.parent}", "device=cpu"]
        started = time.perf_counter()
        process = subprocess.Popen([*TRAIN, *typed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
                if process.poll() is not None or time.perf_counter() - started > TIMEOUT:
                    raise RuntimeError(f"ddpm-train {' '.join(typed)}: did not make a step")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def run(setup: Setup) -> Section:
    """Measure the seconds of each command."""
    works = {
        'python -c "pass"': partial(seconds_to_exit, [sys.executable, "-c", "pass"]),
        'python -c "import torch"': partial(seconds_to_exit, [sys.executable, "-c", "import torch"]),
        "ddpm-train --help": partial(seconds_to_exit, [*TRAIN, "--help"]),
        "ddpm-train --cfg job": partial(seconds_to_exit, [*TRAIN, "--cfg", "job"]),
        "ddpm-train experiment=annotated, its first step done": partial(seconds_to_first_step, setup.data),
    }
    seconds = alternate(works, setup.rounds, 1, "start-up")
    rows = [[name, format_spread(spread(found))] for name, found in seconds.items()]
    notes = [
        f"New processes, {setup.rounds} rounds after one that warms the disk cache.",
        f"Goal: --help under 0.7 s. Result: {spread(seconds['ddpm-train --help']).median:.2f} s.",
    ]
    return Section("Start-up", ["command", "seconds"], rows, notes, {"seconds": seconds})
