"""Sweeps on SLURM, with programs that stand in for those of SLURM and run its jobs on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ddpm_cli.sweeps.jobs_csv import jobs_of
from tests.cli.test_sweep import SHORT, weights
from tests.conftest import TINY, Result

Run = Callable[..., Result]
SBATCH = """#!/bin/sh
# Run each job of an array in the background, and again whenever scontrol has put it back into the queue.
cp "$1" "$FAKE_SLURM/script"
echo "Submitted batch job 7"
jobs=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
export SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
for i in $(seq 0 "$jobs"); do (
    export SLURM_ARRAY_TASK_ID=$i SLURM_JOB_ID=$((7 + i)) SLURM_STEP_NUM_TASKS=1 restarts=0
    while sh "$1"; [ -e "$FAKE_SLURM/7_$i" ]; do
        rm "$FAKE_SLURM/7_$i"
        restarts=$((restarts + 1))
        export SLURM_RESTART_COUNT=$restarts
    done
) </dev/null >"$FAKE_SLURM/log" 2>&1 & done
"""
SRUN = """#!/bin/sh
while :; do case "$1" in --output|--error) shift 2;; --*) shift;; *) break;; esac; done
echo $$ > "$FAKE_SLURM/pid.$SLURM_ARRAY_TASK_ID"
exec "$@" >>"$FAKE_SLURM/out" 2>&1
"""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && touch "$FAKE_SLURM/$2" && echo "$2" >>"$FAKE_SLURM/requeued"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the programs onto the PATH; return the folder of what they record."""
    folder, programs = tmp_path / "slurm", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "sacct": SACCT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    for path in folder.glob("pid.*"):  # of a test that failed
        process = Path("/proc", path.read_text().strip(), "cmdline")
        if process.exists() and b"submitit" in process.read_bytes():
            os.kill(int(process.parent.name), signal.SIGKILL)


def wait_for(ready: Callable[[], bool], sweep: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not ready():
        assert sweep.poll() is None, sweep.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_jobs_of_slurm_resume_their_runs(slurm: Path, run: Run, devices: int) -> None:
    """Signal the first of two jobs as SLURM does before its time is over; it is put back, and its run is resumed."""
    settings = ["train.steps=120", "train.log_every=10", "train.milestone_every=60", "threads=1", f"devices={devices}"]
    overrides = ["-m", "sweep=slurm", "hydra.launcher.partition=gpu", *SHORT, *settings, "train.seed=0,1"]
    command = [sys.executable, "-c", "from ddpm_cli.cli.train import main; main()", *overrides]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = Path("sw/0/metrics.csv")
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, sweep)
    os.kill(int((slurm / "pid.0").read_text()), signal.SIGUSR2)
    assert sweep.wait(300) == 0, (sweep.communicate()[1], (slurm / "out").read_text())
    script = (slurm / "script").read_text()
    for option in ("partition=gpu", "time=240", "signal=USR2@120", "requeue", "gpus-per-node=1", "cpus-per-task=8"):
        assert f"#SBATCH --{option}\n" in script
    assert (slurm / "requeued").read_text().split() == ["7_0"]
    assert [job.status for job in jobs_of(Path("sw")).values()] == ["done", "done"]
    assert Path("sw/0/train.log").read_text().count("network  ") == 2  # it was started twice
    assert Path("sw/1/train.log").read_text().count("network  ") == 1
    assert [int(line.split(",")[0]) for line in metrics.read_text().splitlines()[1:]] == [*range(10, 121, 10)]
    if devices == 1:
        assert run("train", *TINY, *settings, "train.seed=0", "out=single").code == 0
        torch.testing.assert_close(weights("sw/0"), weights("single"), rtol=0, atol=0)


def test_restarted_job_resumes_its_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of SLURM with a fixed run folder is started again and continues; with other overrides it is refused."""
    overrides = [*TINY, "train.steps=2", "out=run"]
    assert run("train", *overrides).code == 0
    assert "already contains a run" in run("train", *overrides).err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = run("train", *overrides)
    assert result.code == 0, result.err
    assert Path("run/train.log").read_text().count("network  ") == 2
    other = run("train", *overrides, "train.seed=1")
    assert other.code == 2
    assert "already contains a run" in other.err
    assert run("train", *overrides[:-1], "out=new").code == 0


def test_restarted_job_of_a_sweep_is_not_run_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM may start a job again that was lost with its machine after it had finished."""
    assert run("train", "-m", *SHORT, "train.seed=0,1").code == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    result = run("train", "-m", *SHORT, "train.seed=0,1")
    assert result.code == 0, result.err
    assert "job 1 is finished" in result.err
    assert Path("sw/1/train.log").read_text().count("network  ") == 1


def test_sweep_needs_the_programs_of_slurm(run: Run, tmp_path: Path) -> None:
    result = run("train", "-m", "sweep=slurm", *SHORT, "train.seed=0,1")
    assert result.code == 2
    assert result.err == (
        "ddpm-train: hydra/launcher=submitit_slurm: there is no srun on this machine; use one of a SLURM cluster\n"
    )
    assert list(tmp_path.iterdir()) == []
