"""Run real `ddpm-train` processes on a few digits and inspect their run folders."""

import csv
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds, far more than any command here takes
TIMING_COLUMNS = ("images_per_second", "seconds")

SMALL = [
    "dataset=image_folder",
    "dataset.image_size=8",
    "dataset.channels=1",
    "dataset.test_fraction=0",
    "model=tiny",
    "model.width=8",
    "model.groups=2",
    "model.multipliers=[1]",
    "model.attention=[none]",
    "schedule.timesteps=50",
    "sampler.steps=2",
    "train.batch_size=4",
    "train.samples=2",
    "train.warmup_steps=5",
    "train.precision=fp32",
    "device=cpu",
]
FREQUENT = ["train.steps=40", "train.milestone_every=4", "train.log_every=3"]
"""A run of about three seconds, with a checkpoint every 0.3 seconds."""


def write_digits(folder: Path, first: int = 0) -> Path:
    """Write forty of scikit-learn's digits as files, in one folder per class."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for i in range(first, first + 40):
        file = folder / str(data.target[i]) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[i] * 255 / 16).astype("uint8")).save(file)
    return folder


class Process:
    """A running command: `ddpm-train`, or a module of these tests that injects a fault and calls it."""

    def __init__(
        self, *args: str, module: str = "ddpm_cli.cli.train", file_limit: int | None = None, figures: bool = False
    ) -> None:
        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))

        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"{'' if figures else 'import tests.faults.fast_start; '}import {module} as m; m.main()"
        )
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=limit,
            text=True,
        )

    def wait(self) -> tuple[int, list[str]]:
        """Wait for the end; return the exit status (negative: killed by a signal) and the lines on stderr."""
        _, err = self.popen.communicate(timeout=TIMEOUT)
        assert "Traceback" not in err, err
        return self.popen.returncode, err.splitlines()

    def wait_for(self, condition: Callable[[], Any]) -> bool:
        """Wait until `condition` holds; return False if the process ends first."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if self.popen.poll() is not None:
                return bool(condition())
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return True


@contextmanager
def running(*args: str, **options: Any) -> Iterator[Process]:
    """Start a process, and kill it at the end of the block if it still runs."""
    process = Process(*args, **options)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


def train_to_end(*args: str, **options: Any) -> list[str]:
    """Run a command to its end, check that it succeeds, and return the lines on stderr."""
    with running(*args, **options) as process:
        code, lines = process.wait()
    assert code == 0, lines
    return lines


def steps_done(folder: Path) -> int:
    """Return the last step in metrics.csv, or 0."""
    try:
        lines = (folder / "metrics.csv").read_text().splitlines()
        return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0
    except (OSError, ValueError):  # the file is missing or only partly written
        return 0


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without the timing columns."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in csv.DictReader(stream)]


def temporary_files(folder: Path) -> list[Path]:
    return [*folder.rglob(".*.tmp")]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Check that two runs are bit-for-bit equal: weights, average, optimizer, rows, last grid and film."""
    states = [torch.load(folder / "checkpoints" / "last.pt", weights_only=True) for folder in (ours, theirs)]
    assert states[0].pop("seconds") > 0
    assert states[1].pop("seconds") > 0
    assert_same(*states)
    assert rows(ours) == rows(theirs)
    step = states[0]["step"]
    grids = [(folder / "samples" / f"step_{step:08d}.png").read_bytes() for folder in (ours, theirs)]
    assert grids[0] == grids[1]
    films = [(folder / "samples" / "film.gif").read_bytes() for folder in (ours, theirs)]
    assert films[0] == films[1]
    assert not temporary_files(ours)


def assert_same(ours: Any, theirs: Any, at: str = "") -> None:
    """Check that two trees of tensors and values are bit-for-bit equal."""
    assert type(ours) is type(theirs), at
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), at
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), at
        for key in ours:
            assert_same(ours[key], theirs[key], f"{at}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), at
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, at)
    else:
        assert ours == theirs, at
