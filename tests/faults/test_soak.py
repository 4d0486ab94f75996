"""A long run: memory, open files and the duration of a milestone do not grow."""

import os
import re
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.processes import SMALL, running, steps_done

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_and_files_do_not_grow(digits: Path, full: bool, tally: Callable[[str], Callable[[], None]]) -> None:
    survived = tally("milestones of a long run without growth")
    steps = 20_000 if full else 1_600
    every = steps // 40
    overrides = ["model.width=4", "model.groups=1", "train.batch_size=1", "train.samples=1", "sampler.steps=1"]
    args = {word.split("=")[0]: word for word in [*SMALL, *overrides]}
    memory, files = {}, {}
    run_overrides = [f"dataset.root={digits}", f"train.steps={steps}", f"train.milestone_every={every}", "out=run"]
    with running(*args.values(), *run_overrides, figures=True) as process:
        proc = Path("/proc") / str(process.popen.pid)
        while process.popen.poll() is None:
            step = steps_done(Path("run"))
            try:
                memory[step] = int((proc / "statm").read_text().split()[1]) * PAGE
                files[step] = len([*(proc / "fd").iterdir()])
            except OSError:  # the process has just ended
                break
            time.sleep(0.05)
        assert process.wait()[0] == 0
    settled = [step for step in memory if step >= 1000]
    assert len(settled) > 20
    first, last = settled[: len(settled) // 10 + 1], settled[-(len(settled) // 10 + 1) :]
    grown = statistics.median(memory[step] for step in last) / statistics.median(memory[step] for step in first)
    assert grown < 1.02, f"resident memory grew by {grown - 1:.1%}"
    assert statistics.median(files[step] for step in last) <= statistics.median(files[step] for step in first)
    seconds = milestone_seconds(Path("run/train.log"))
    assert len(seconds) == 40
    early, late = statistics.median(seconds[2:14]), statistics.median(seconds[-12:])
    assert late < 1.5 * early, f"milestones took {early:.3f} s and then {late:.3f} s"
    for _ in seconds:
        survived()


def milestone_seconds(log: Path) -> list[float]:
    """Return the seconds of each milestone, from the log line of its step to the line that reports it."""
    found, row = [], ""
    for line in log.read_text().splitlines():
        if "  loss " in line:
            row = line
        elif "milestone at step" in line:
            start, done = (
                datetime.fromisoformat(re.split(" [^0-9]", text)[0].replace(",", ".")) for text in (row, line)
            )
            found.append((done - start).total_seconds())
    return found
