"""Run folders: concurrent processes, starts in the same second, moving, changed data, pruning and foreign files."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.checkpoints.run_folder import locked
from tests.conftest import Result
from tests.faults.processes import SMALL, Process, assert_same_run, running, steps_done, train_to_end, write_digits

Tally = Callable[[str], Callable[[], None]]


def test_second_process_on_a_run_folder_is_rejected(run: Callable[..., Result], small: list[str], tally: Tally) -> None:
    survived = tally("second processes rejected")
    with running(*small, "out=run") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 3)
        os.kill(process.popen.pid, signal.SIGSTOP)  # it still holds the lock
        for args in (["resume=run"], [*small, "out=run"]):
            refused = run("train", *args)
            assert refused.code == 2
            assert refused.err.count("\n") == 1
            assert f"process {process.popen.pid} on" in refused.err or "already contains a run" in refused.err
            survived()
    with locked("resume", Path("run")):  # the lock was released with the process
        pass


@pytest.mark.slow
def test_runs_started_in_the_same_second_have_different_folders(digits: Path, full: bool, tally: Tally) -> None:
    survived = tally("runs started in the same second")
    processes = [Process(*SMALL, f"dataset.root={digits}", "train.steps=1") for _ in range(8 if full else 3)]
    assert all(process.wait()[0] == 0 for process in processes)
    folders = list(Path("outputs/train/image_folder").iterdir())
    assert len(folders) == len(processes)
    for folder in folders:
        assert load_checkpoint("ckpt", folder / "checkpoints" / "last.pt")["step"] == 1
        survived()


@pytest.mark.slow
def test_moved_run_can_be_resumed(small: list[str], undisturbed: Callable[..., Path], tally: Tally) -> None:
    survived = tally("moved runs resumed")
    train_to_end(*small, "train.steps=12", "out=run")
    Path("elsewhere").mkdir()
    shutil.move("run", "elsewhere/renamed")
    train_to_end("resume=elsewhere/renamed", "train.steps=40")
    assert_same_run(Path("elsewhere/renamed"), undisturbed())
    assert [path.name for path in Path.cwd().iterdir()] == ["elsewhere"]
    survived()


@pytest.mark.slow
def test_changed_data_are_rejected_on_resume(small: list[str], tally: Tally) -> None:
    survived = tally("changed data rejected")
    ours, theirs = write_digits(Path("ours").absolute()), write_digits(Path("theirs").absolute(), first=40)
    train_to_end(*small, f"dataset.root={ours}", "train.steps=4", "out=run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*.pt")}
    with running("resume=run", f"dataset.root={theirs}", "train.steps=8") as process:
        code, lines = process.wait()
    assert code == 2
    assert lines == [
        "ddpm-train: resume=run: the data are not those that it was trained on so far; give it those, "
        "or go on with these by resume_data_changed=true"
    ]
    assert {path: path.read_bytes() for path in Path("run").rglob("*.pt")} == before
    survived()
    shutil.move(ours, "moved")  # the same data in another folder are accepted
    train_to_end("resume=run", "dataset.root=moved", "train.steps=8")
    train_to_end("resume=run", f"dataset.root={theirs}", "train.steps=12", "resume_data_changed=true")
    train_to_end("resume=run", f"dataset.root={theirs}", "train.steps=16")  # the run now expects these data
    assert load_checkpoint("ckpt", Path("run/checkpoints/last.pt"))["step"] == 16


@pytest.mark.slow
def test_pruning_always_leaves_a_checkpoint(small: list[str], tally: Tally) -> None:
    survived = tally("reads of a folder that is being pruned")
    checkpoints = Path("run/checkpoints")
    keep = ["train.milestone_every=1", "checkpoint.keep_last=2", "checkpoint.keep_every=10", "out=run"]
    with running(*small, *keep, "train.steps=25", module="tests.faults.slow_writes") as process:
        process.wait_for((checkpoints / "last.pt").exists)
        seen = set()
        while process.popen.poll() is None:
            seen.add(int(load_checkpoint("ckpt", checkpoints / "last.pt")["step"]))
            assert len([*checkpoints.glob("step_*.pt")]) <= 2 + 1 + 4
            survived()
            time.sleep(0.02)
        assert process.wait()[0] == 0
    assert len(seen) > 5
    kept = sorted(int(path.stem[5:]) for path in checkpoints.glob("step_*.pt"))
    assert kept == [10, 20, 24, 25]


@pytest.mark.parametrize("args", [["out=mine"], ["resume=mine"]])
def test_foreign_files_are_kept(args: list[str], small: list[str], tally: Tally) -> None:
    survived = tally("foreign folders left unchanged")
    for name in ("metrics.csv", ".hydra/config.yaml", "train.log", "checkpoints/best.ckpt"):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text("precious")
    before = {path: path.is_dir() or path.read_bytes() for path in Path("mine").rglob("*")}
    with running(*(small if args == ["out=mine"] else []), *args) as process:
        code, lines = process.wait()
    assert (code, len(lines)) == (2, 1)
    assert {path: path.is_dir() or path.read_bytes() for path in Path("mine").rglob("*")} == before
    survived()
