"""The time left of a run, with its milestones, and the hint for cores that other programs use."""

import logging
import time

import pytest
import torch

from ddpm_cli.tracking.progress import Progress, duration


class Clock:
    """A clock that moves only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def progress_of(steps: int, every: int, on_cpu: bool = False) -> Progress:
    """Return the progress of a run with a milestone every `every` steps, estimated to take as long as 10 steps."""
    return Progress(0, steps, 8, 0.0, on_cpu, lambda step: steps // every - step // every, 10)


def walk(progress: Progress, clock: Clock, first: int, last: int, seconds: float) -> float:
    """Take the steps after `first` to `last`; return the images per second."""
    for step in range(first + 1, last + 1):
        clock.now += seconds
        progress.after_step(step, torch.tensor(0.5))
    return progress.lap(last, 0.5)


def test_time_left_includes_milestones(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = progress_of(steps=100, every=50)
    assert walk(progress, clock, 0, 20, seconds=0.5) == 16
    assert "100 steps will take about 1 min 00 s, milestones included" in caplog.text  # 2 milestones of 10 steps
    assert "step 20/100  loss 0.5000  16 images/s  50 s left" in caplog.text
    walk(progress, clock, 20, 50, seconds=0.5)
    clock.now += 20
    progress.after_milestone()
    walk(progress, clock, 50, 60, seconds=0.5)
    assert "step 60/100  loss 0.5000  16 images/s  40 s left" in caplog.text  # 20 s of steps and one milestone of 20 s
    assert progress.seconds == 30


@pytest.mark.parametrize(("on_cpu", "threads", "seconds", "hints"), [
    (True, 2, 1.6, 1), (True, 2, 1.4, 0), (True, 1, 1.6, 0), (False, 2, 1.6, 0),
])  # fmt: skip
def test_slow_steps_on_a_cpu_are_explained_once(
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    on_cpu: bool,
    threads: int,
    seconds: float,
    hints: int,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    progress = progress_of(steps=100, every=100, on_cpu=on_cpu)
    walk(progress, clock, 0, 10, seconds=0.5)
    for first in (10, 20):
        walk(progress, clock, first, first + 10, seconds)
    assert caplog.text.count("resume with threads=1") == hints


def test_a_short_pause_is_no_reason_for_a_hint(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = progress_of(steps=100, every=100, on_cpu=True)
    walk(progress, clock, 0, 10, seconds=0.01)
    walk(progress, clock, 10, 11, seconds=4.0)
    assert "threads=1" not in caplog.text


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
