"""Runs of several processes that are stopped, killed and resumed, by the same or another number of processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_cli.checkpoints.run_folder import RunFolder
from tests.faults.processes import TIMEOUT, assert_same_run, rows, running, steps_done, temporary_files, train_to_end

ENDLESS = ["train.steps=100000", "train.milestone_every=100000", "train.log_every=2", "train.warmup_steps=0"]
TWO = "devices=2"


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the workers of a launcher, without its helper processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            args = (folder / "cmdline").read_text()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # the process has ended
            continue
        if parent == pid and "spawn_main" in args:
            found.append(int(folder.name))
    return sorted(found)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def max_difference(ours: Path, theirs: Path) -> float:
    """Return the largest difference between the weights of two runs."""
    states = [torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"] for folder in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    return max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])


@pytest.mark.slow  # 50 s; test_sharding.py resumes two processes, and test_loop.py stops one
def test_stopped_processes_resume_bit_for_bit(small: list[str], tally: Callable[[str], Callable[[], None]]) -> None:
    survived = tally("several processes stopped and resumed bit for bit")
    with running(*small, *ENDLESS, TWO, "out=run") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 4)
        process.popen.send_signal(signal.SIGTERM)
        code, lines = process.wait()
    assert code == 143, lines
    assert "SIGTERM: stopped after step" in lines[-1]
    assert not temporary_files(Path("run"))
    end = int(re.findall(r"stopped after step (\d+)", lines[-1])[0]) + 4
    train_to_end("resume=run", f"train.steps={end}")  # with the same number of processes
    train_to_end(*small, *ENDLESS, TWO, "out=uninterrupted", f"train.steps={end}")
    assert_same_run(Path("run"), Path("uninterrupted"))
    survived()


@pytest.mark.slow
def test_killed_run_with_sharded_checkpoints_resumes_bit_for_bit(small: list[str]) -> None:
    sharded = ["distributed.strategy=fsdp", "checkpoint.sharded=true", "train.milestone_every=2"]
    with running(*small, *ENDLESS, TWO, *sharded, "out=run") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 4)
        for pid in [*workers_of(process.popen.pid), process.popen.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    incomplete = Path("run/checkpoints/step_00099998.shards")
    incomplete.mkdir()
    end = max(RunFolder(Path("run")).checkpoints_by_step()) + 4
    train_to_end("resume=run", f"train.steps={end}")
    train_to_end(*small, *ENDLESS, TWO, *sharded, "out=uninterrupted", f"train.steps={end}")
    assert not incomplete.exists()
    assert_same_run(Path("run"), Path("uninterrupted"))
    before_the_end = RunFolder(Path("run")).checkpoint(end - 2)
    assert before_the_end.with_suffix(".shards").is_dir()


@pytest.mark.slow
def test_run_of_two_processes_is_resumed_by_one(small: list[str]) -> None:
    train_to_end(*small, *ENDLESS, TWO, "out=run", "train.steps=8")
    train_to_end("resume=run", "train.steps=12", "devices=1")
    train_to_end(*small, *ENDLESS, "out=alone", "train.steps=12")
    assert rows(Path("run"))[-1]["step"] == "12"
    assert max_difference(Path("run"), Path("alone")) < 1e-4


@pytest.mark.slow
def test_workers_do_not_outlive_their_launcher(small: list[str], tally: Callable[[str], Callable[[], None]]) -> None:
    survived = tally("launchers killed without leaving workers")
    with running(*small, *ENDLESS, TWO, "out=run") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 2)
        process.popen.kill()
        process.popen.communicate(timeout=TIMEOUT)  # returns once the workers, which share stderr, have ended
    end = steps_done(Path("run")) + 6
    train_to_end("resume=run", f"train.steps={end}", "devices=1")
    survived()


@pytest.mark.slow
def test_lost_worker_restarts_both_launchers(small: list[str], tally: Callable[[str], Callable[[], None]]) -> None:
    survived = tally("workers killed and restarted")
    common = [*small, "train.steps=120", "train.milestone_every=20", "train.log_every=2", "train.warmup_steps=0"]
    machines = ["distributed.nnodes=2", f"distributed.rdzv_endpoint=127.0.0.1:{free_port()}"]
    args = [*common, *machines, "distributed.max_restarts=1", "out=run"]
    with running(*args) as first, running(*args) as second:
        second.wait_for(lambda: steps_done(Path("run")) >= 30)
        (victim,) = workers_of(second.popen.pid)
        os.kill(victim, signal.SIGKILL)
        ends = [process.wait() for process in (first, second)]
    assert [code for code, _ in ends] == [0, 0], ends
    train_to_end(*common, TWO, "out=uninterrupted")
    assert rows(Path("run")) == rows(Path("uninterrupted"))
    assert max_difference(Path("run"), Path("uninterrupted")) == 0
    survived()


@pytest.mark.slow
def test_lost_worker_is_one_line(small: list[str]) -> None:
    with running(*small, *ENDLESS, TWO, "out=run") as process:
        process.wait_for(lambda: steps_done(Path("run")) >= 2)
        time.sleep(0.1)
        os.kill(workers_of(process.popen.pid)[1], signal.SIGKILL)
        code, lines = process.wait()
    assert code == 1
    assert "process 1 was lost: Signal 9" in lines[-1]
    assert "resume=run" in lines[-1]


def torchrun(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    code = "import ddpm_cli.cli.train as m; m.main()"
    return subprocess.run(
        [*command, sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


@pytest.mark.slow
def test_under_torchrun(small: list[str]) -> None:
    short = [*small, "train.steps=4", "train.log_every=1", "train.milestone_every=4"]
    ended = torchrun(*short, "out=run")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("4 steps of") == 1
    train_to_end(*short, TWO, "out=ours")
    assert rows(Path("run")) == rows(Path("ours"))
    assert max_difference(Path("run"), Path("ours")) == 0
    refused = torchrun(*short, "out=run")
    assert refused.returncode != 0
    assert refused.stderr.count("already contains a run") == 1


@pytest.mark.slow
def test_under_srun(small: list[str]) -> None:
    """Simulate srun with the environment variables that it sets."""
    short = [*small, "train.steps=4", "train.log_every=1", "train.milestone_every=4", "out=run"]
    code = "import ddpm_cli.cli.train as m; m.main()"
    step = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "OMP_NUM_THREADS": "1",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *short],
            env=os.environ | step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [task.communicate(timeout=TIMEOUT)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert "4 steps of" in errors[0]
    assert errors[1] == ""
    assert steps_done(Path("run")) == 4
