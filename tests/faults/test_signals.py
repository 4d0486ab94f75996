"""Signals that stop a run or save a checkpoint: the step is finished and kept, and one line says how to resume."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import assert_same_run, running, steps_done, temporary_files, train_to_end

STOP_SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


@pytest.mark.slow  # tests/training/test_loop.py stops a run in this process at every moment
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize(("number", "status"), STOP_SIGNALS, ids=lambda value: str(value))
def test_stopped_run_resumes_bit_for_bit(
    number: signal.Signals,
    status: int,
    trial: int,
    small: list[str],
    undisturbed: Callable[..., Path],
    full: bool,
    tally: Callable[[str], Callable[[], None]],
) -> None:
    if not full and (trial > 0 or number != signal.SIGTERM):
        pytest.skip("only with --full")
    survived = tally("runs stopped by a signal and resumed bit for bit")
    with running(*small, "out=run", module="tests.faults.slow_writes") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 1 + 3 * trial)
        time.sleep(random.Random(f"{number}{trial}").uniform(0, 0.3))
        process.popen.send_signal(number)
        code, lines = process.wait()
    assert code == status
    *_, last = lines
    assert f"{number.name}: stopped after step" in last
    assert "ddpm-train resume=run continues" in last
    assert not temporary_files(Path("run"))
    step = int(last.split("stopped after step ")[1].split()[0])
    resumed = train_to_end("resume=run")
    assert any(f"steps {step} to 40" in line for line in resumed)
    assert_same_run(Path("run"), undisturbed())
    survived()


@pytest.mark.slow
def test_second_interrupt_stops_at_once(
    small: list[str], undisturbed: Callable[..., Path], tally: Callable[[str], Callable[[], None]]
) -> None:
    survived = tally("runs stopped by two signals")
    checkpoints = Path("run/checkpoints")
    with running(*small, "out=run", module="tests.faults.slow_writes") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 4)
        process.popen.send_signal(signal.SIGINT)
        process.wait_for(lambda: temporary_files(checkpoints))  # it is writing a checkpoint
        process.popen.send_signal(signal.SIGINT)
        code, lines = process.wait()
    assert code == 130
    assert "stopped at once; ddpm-train resume=run continues from its last checkpoint" in lines[-1]
    assert not temporary_files(Path("run"))
    train_to_end("resume=run")
    assert_same_run(Path("run"), undisturbed())
    survived()


@pytest.mark.slow
def test_signal_saves_a_checkpoint(
    small: list[str], undisturbed: Callable[..., Path], tally: Callable[[str], Callable[[], None]]
) -> None:
    survived = tally("checkpoints saved by a signal")
    rare = [word for word in small if "milestone_every" not in word]
    with running(*rare, "train.milestone_every=40", "checkpoint.keep_last=null", "out=run") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 3)
        process.popen.send_signal(signal.SIGUSR1)
        code, _ = process.wait()
    assert code == 0
    steps = sorted(int(path.stem[5:]) for path in Path("run/checkpoints").glob("step_*.pt"))
    assert steps[0] == 0
    assert 3 <= steps[1] < 40
    train_to_end(f"resume=run/checkpoints/step_{steps[1]:08d}.pt")
    assert_same_run(Path("run"), undisturbed("train.milestone_every=40", "checkpoint.keep_last=null"))
    survived()
