"""A full disk, simulated by a limit on the size of files: no partial files, and one line that says what to do."""

import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_cli.checkpoints.format import load_checkpoint
from tests.faults.processes import assert_same_run, running, steps_done, temporary_files, train_to_end


def last_step() -> int:
    return int(load_checkpoint("ckpt", Path("run/checkpoints/last.pt"))["step"])


def disk_full_message(file: str) -> str:
    return rf"^ddpm-train: run/{file}: no room on the disk for this file, which needs [\d.]+ (KiB|bytes); make some; "


@pytest.mark.slow  # tests/test_files.py and test_loop.py simulate a full disk
def test_disk_full_at_a_checkpoint(
    small: list[str], undisturbed: Callable[..., Path], tally: Callable[[str], Callable[[], None]]
) -> None:
    """The checkpoint of step 0 has no optimizer moments; it is smaller and fits."""
    survived = tally("runs stopped by a full disk with a valid last checkpoint")
    with running(*small, "out=run", file_limit=250_000) as process:
        code, lines = process.wait()
    assert code == 1
    assert re.search(disk_full_message("checkpoints/step_00000004.pt"), lines[-1])
    assert lines[-1].endswith("ddpm-train resume=run continues from its last checkpoint")
    assert last_step() == 0
    assert not temporary_files(Path("run"))
    train_to_end("resume=run")
    assert_same_run(Path("run"), undisturbed())
    survived()


@pytest.mark.slow
def test_disk_full_at_the_first_checkpoint(small: list[str], tally: Callable[[str], Callable[[], None]]) -> None:
    survived = tally("runs stopped by a full disk with a valid last checkpoint")
    with running(*small, "out=run", file_limit=100_000) as process:
        code, lines = process.wait()
    assert code == 1
    assert re.search(disk_full_message("checkpoints/step_00000000.pt"), lines[-1])
    assert lines[-1].endswith("nothing was trained yet, so the same command starts again")
    train_to_end(*small, "out=run", "train.steps=1")
    survived()


@pytest.mark.slow
def test_disk_full_at_a_grid(
    small: list[str], undisturbed: Callable[..., Path], tally: Callable[[str], Callable[[], None]]
) -> None:
    survived = tally("runs stopped by a full disk with a valid last checkpoint")
    with running(*small, "out=run", module="tests.faults.full_disk") as process:
        code, lines = process.wait()
    assert code == 1
    assert re.search(disk_full_message("samples/step_00000004.png"), lines[-1])
    assert last_step() == 4
    assert not temporary_files(Path("run"))
    train_to_end("resume=run")
    assert Path("run/samples/step_00000004.png").exists()  # written on resume
    assert_same_run(Path("run"), undisturbed())
    survived()


@pytest.mark.full
def test_disk_full_at_a_metrics_row(
    small: list[str], undisturbed: Callable[..., Path], tally: Callable[[str], Callable[[], None]]
) -> None:
    survived = tally("runs stopped by a full disk with a valid last checkpoint")
    override, metrics = "train.log_every=1", Path("run/metrics.csv")
    with running(*small, override, "out=run", module="tests.faults.slow_writes") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 5)
        size = metrics.stat().st_size + 100
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (size, size))
        code, lines = process.wait()
    assert code == 1
    assert re.search(r"run/\S+: no room on the disk for this file, which needs [\d.]+ ([KM]iB|bytes); ", lines[-1])
    assert not temporary_files(Path("run"))
    train_to_end("resume=run")
    assert_same_run(Path("run"), undisturbed(override))
    survived()


@pytest.mark.slow
def test_training_continues_on_a_full_disk(
    small: list[str], undisturbed: Callable[..., Path], tally: Callable[[str], Callable[[], None]]
) -> None:
    survived = tally("runs continued on a full disk until there was room")
    override = "train.on_disk_full=continue"
    with running(*small, override, "out=run", file_limit=250_000) as process:
        assert process.popen.stderr is not None
        warning = next(line for line in process.popen.stderr if "no room" in line)
        assert "step_00000004.pt: no room on the disk" in warning
        assert "training continues, and the next milestone tries again" in warning
        assert last_step() == 0
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, unlimited)
        code, lines = process.wait()
    assert code == 0, lines
    assert_same_run(Path("run"), undisturbed(override))
    survived()


@pytest.mark.full
def test_run_fails_if_its_end_cannot_be_saved(small: list[str], tally: Callable[[str], Callable[[], None]]) -> None:
    survived = tally("runs that report a disk full to the end")
    with running(*small, "train.on_disk_full=continue", "out=run", file_limit=250_000) as process:
        code, lines = process.wait()
    assert code == 1
    assert "step_00000040.pt: no room on the disk" in lines[-1]
    assert last_step() == 0
    assert not temporary_files(Path("run"))
    survived()
