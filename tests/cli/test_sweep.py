"""Sweeps with Hydra's launchers and sweepers: failed jobs, stopped sweeps and resuming them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm_cli.cli.app import sweep
from ddpm_cli.cli.app.shorthands import expand
from ddpm_cli.cli.app.sweep import _free_number, at_once, devices_of, share_of_machine
from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import Stopped
from ddpm_cli.sweeps.jobs_csv import jobs_of
from ddpm_cli.training import start as in_process
from tests.conftest import TINY, Result

Run = Callable[..., Result]
SHORT = [*TINY, "train.steps=2", "hydra.sweep.dir=sw"]


def rows(folder: str = "sw") -> list[dict[str, str]]:
    with Path(folder, "jobs.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights(folder: Path | str) -> torch.Tensor:
    state = torch.load(Path(folder, "checkpoints/last.pt"), weights_only=True)
    return torch.cat([tensor.flatten() for tensor in state["model"].values()])


def test_failing_job_does_not_stop_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run three jobs, of which the first raises an error that is not a user error."""
    real = in_process._run_loop

    def faulty(trainer: Any, *rest: Any) -> float:
        if trainer.config.train.seed == 0:
            raise RuntimeError("a fault\nof two lines")
        return real(trainer, *rest)

    monkeypatch.setattr(in_process, "_run_loop", faulty)
    overrides = ["train.seed=0,1,2", "train.lr=10", "train.max_bad_steps=1", "train.report=val_loss"]
    result = run("train", "-m", *SHORT, *overrides)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        "ddpm-train: 1 of 3 jobs failed; the first was job 0: RuntimeError: a fault"
    )
    found = rows()
    assert [row["status"] for row in found] == ["failed", "done", "done"]
    assert found[0]["error"] == "RuntimeError: a fault of two lines"
    assert [float(row["value"]) > 0 for row in found[1:]] == [True, True]
    assert "train.seed=0  failed  RuntimeError: a fault of two lines" in result.err
    assert not Path("sw/0/checkpoints/last.pt").exists()
    assert Path("sw/2/checkpoints/last.pt").exists()


def test_signal_stops_a_sweep(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the jobs after the stopped one do not start, and that sweep.resume runs the missing jobs."""
    real = in_process._run_loop

    def stopped(trainer: Any, *rest: Any) -> float:
        if trainer.config.train.seed == 1:
            raise Stopped(signal.SIGTERM, "stopped after step 1")
        return real(trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "_run_loop", stopped)
        result = run("train", "-m", *SHORT, "train.seed=0,1,2")
    assert result.code == 128 + signal.SIGTERM
    assert result.err.splitlines()[-1] == "ddpm-train: stopped after step 1"
    assert [row["job"] for row in rows()] == ["0"]
    assert not Path("sw/2").exists()
    again = run("train", "-m", *SHORT[:-1], "train.seed=0,1,2", "sweep.resume=sw")
    assert again.code == 0, again.err
    assert [row["job"] for row in rows()] == ["0", "0", "1", "2"]


SPELLINGS = [
    "sweep.resume='lr=1e-3, b'",
    'sweep.resume="lr=1e-3, b"',
    r"sweep.resume=lr\=1e-3\, b",
    "sweep.resume=lr=1e-3, b",
    '++sweep.resume="lr=1e-3, b"',
]


@pytest.mark.parametrize("typed", SPELLINGS)
def test_all_spellings_of_sweep_resume_are_the_same_folder(typed: str) -> None:
    word, _ = expand("train", TrainConfig, ["-m", typed])
    override = OverridesParser.create().parse_override(word)
    assert (override.key_or_group, override.value()) == ("sweep.resume", "lr=1e-3, b")


def test_sweep_resume_of_a_quoted_folder(run: Run) -> None:
    """Its job is finished, so nothing is trained."""
    jobs = [*SHORT[:-1], "train.steps=1"]
    assert run("train", "-m", *jobs, "hydra.sweep.dir='lr=1e-3, b'").code == 0
    result = run("train", "-m", *jobs, '++sweep.resume="lr=1e-3, b"')
    assert result.code == 0, result.err
    assert "job 0 is finished" in result.err
    assert [path.name for path in Path().iterdir()] == ["lr=1e-3, b"]
    saved = yaml.safe_load(Path("lr=1e-3, b/0/.hydra/overrides.yaml").read_text())
    assert not [text for text in saved if "sweep" in text]


@pytest.mark.parametrize("typed", ["hydra.job.chdir=true", "++hydra.job.chdir=True", "hydra.job.chdir=false,true"])
@pytest.mark.parametrize("several", [[], ["-m", "train.seed=0,1"]])
def test_another_working_folder_is_refused(typed: str, several: list[str], run: Run) -> None:
    """There, data/ would not be the folder that was meant."""
    result = run("train", *several, typed, "hydra.sweep.dir=many", "hydra.run.dir=one")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith("ddpm-train: hydra.job.chdir=true: must be false, because relative paths start where")
    assert list(Path().iterdir()) == []


def test_jobs_at_another_depth_of_the_folder_of_a_sweep(run: Run) -> None:
    """Its jobs.csv is found there, and its rungs.csv is written there."""
    typed = ["train", "-m", *SHORT[:-1], "hydra.job.chdir=false", "hydra.sweep.subdir=runs/${hydra:job.num}"]
    prune = ["train.milestone_every=1", "sweep.prune=asha"]
    result = run(*typed, *prune, "hydra.sweep.dir=sw")
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path("sw").iterdir()) == ["jobs.csv", "multirun.yaml", "rungs.csv", "runs"]
    assert "job 0 is finished" in run(*typed, *prune, "sweep.resume=sw").err


@pytest.mark.parametrize("typed", ["sweep.resume=nowhere", "++sweep.resume='no where'", "sweep.resume=lr=1e-3"])
def test_sweep_resume_of_no_folder_is_refused(typed: str, run: Run) -> None:
    result = run("train", "-m", *SHORT[:-1], "train.seed=0,1", typed)
    assert result.code == 2
    named = typed.lstrip("+").replace("'", "")
    assert result.err == f"ddpm-train: {named}: no such folder; name the folder of a sweep\n"
    assert list(Path().iterdir()) == []


def test_sweep_resume_of_several_folders_is_refused(run: Run) -> None:
    result = run("train", "-m", *SHORT[:-1], "train.seed=0,1", "sweep.resume=a,b")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "sweep.resume=a,b: has several values" in result.err


@pytest.mark.slow
def test_sweep_resume_runs_missing_and_unfinished_jobs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["train", "-m", *SHORT[:-1], "train.seed=0,1,2", "train.milestone_every=1", "train.report=val_loss"]
    assert run(*overrides, "hydra.sweep.dir=uninterrupted").code == 0
    real = in_process._run_loop

    def interrupt() -> None:
        raise RuntimeError("interrupted")

    def stopped(job: Any, trainer: Any, *rest: Any) -> float:
        seed, step = trainer.config.train.seed, trainer.train_step
        if seed == 2:
            raise RuntimeError("not started")
        if seed == 1:
            trainer.train_step = lambda: step() if trainer.step == 0 else interrupt()
        return real(job, trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "_run_loop", stopped)
        assert run(*overrides, "hydra.sweep.dir=sw").code == 1
    assert [row["status"] for row in rows()] == ["done", "failed", "failed"]
    assert Path("sw/1/checkpoints/step_00000001.pt").is_file()
    assert not Path("sw/1/checkpoints/step_00000002.pt").exists()
    first = Path("sw/0/checkpoints/last.pt").stat().st_mtime_ns
    result = run(*overrides, "sweep.resume=sw")
    assert result.code == 0, result.err
    assert "job 0 is finished" in result.err
    assert Path("sw/0/checkpoints/last.pt").stat().st_mtime_ns == first
    jobs = jobs_of(Path("sw"))
    assert [job.status for job in jobs.values()] == ["done"] * 3
    assert [job.value for job in jobs.values()] == [job.value for job in jobs_of(Path("uninterrupted")).values()]
    for job in range(3):
        torch.testing.assert_close(weights(f"sw/{job}"), weights(f"uninterrupted/{job}"), rtol=0, atol=0)
        saved = yaml.safe_load(Path(f"sw/{job}/.hydra/overrides.yaml").read_text())
        assert saved == yaml.safe_load(Path(f"uninterrupted/{job}/.hydra/overrides.yaml").read_text())
    again = run(*overrides, "sweep.resume=sw")
    assert again.code == 0
    assert again.err.count("is finished") == 3


def test_sweep_resume_with_other_overrides_is_refused(run: Run) -> None:
    """All jobs are compared before one starts, so that the sweep stays as it is."""
    assert run("train", "-m", *SHORT, "train.seed=0").code == 0
    (row,) = rows()
    for seeds in ("1,0", "0 train.lr=0.01"):
        result = run("train", "-m", *SHORT[:-1], *f"train.seed={seeds}".split(), "sweep.resume=sw")
        assert (result.code, result.err.count("\n")) == (2, 1)
        has = "train.seed=1" if seeds == "1,0" else "train.lr=0.01"
        assert (
            f"job 0 of the sweep had {'train.seed=0' if seeds == '1,0' else 'nothing else'}, and now has {has};"
            in result.err
        )
        assert "type the command of the sweep" in result.err
        assert rows() == [row]
        assert not Path("sw/1").exists()
    shutil.rmtree("sw/0")  # jobs.csv still has the overrides of a job that is done
    assert run("train", "-m", *SHORT[:-1], "train.seed=1", "sweep.resume=sw").code == 2


def test_sweep_file_sets_the_choices(run: Run) -> None:
    result = run("train", "-m", "sweep=schedules_losses", *SHORT)
    assert result.code == 0, result.err
    found = [yaml.safe_load(Path(f"sw/{job}/.hydra/config.yaml").read_text()) for job in range(4)]
    assert [(config["schedule"]["name"], config["loss"]["name"]) for config in found] == [
        ("linear", "l1"), ("linear", "l2"), ("cosine", "l1"), ("cosine", "l2"),
    ]  # fmt: skip


def test_every_job_of_a_sweep_file_is_checked_before_the_first_job(run: Run, tmp_path: Path) -> None:
    result = run("train", "-m", "sweep=schedules_losses", *SHORT, "weighting=min_snr", "loss=l2,vlb")
    assert result.code == 2
    assert "weighting=min_snr: must be none with loss=vlb" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_other_launchers(launcher: str, tmp_path: Path) -> None:
    """Run the command in a process, because these launchers start processes. One of the two jobs fails."""
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    overrides = ["-m", *SHORT, f"hydra/launcher={launcher}", *more, "train.seed=0,1", "train.report=val_loss"]
    (tmp_path / "sw/1").mkdir(parents=True)
    (tmp_path / "sw/1/thesis.txt").write_text("in the way")
    command = [sys.executable, "-c", "from ddpm_cli.cli.train import main; main()", *overrides]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    err = ended.stderr
    assert ended.returncode == 1, err
    assert "out=" in err
    assert "already contains files" in err
    jobs = jobs_of(tmp_path / "sw")
    assert {job.status for job in jobs.values()} == {"done", "failed"}
    assert jobs[0].status == "done"
    record = json.loads((tmp_path / "sw/0/evaluations.jsonl").read_text())
    assert record["metrics"]["val_loss"] == jobs[0].value


def test_error_for_an_unknown_launcher_names_the_plugins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("train", "-m", *SHORT, "hydra/launcher=nowhere", "train.seed=0,1")
    assert result.code == 2
    assert "hydra/launcher=nowhere: must be basic" in result.err
    assert "pip install 'ddpm-cli[sweep]' installs joblib, submitit and Optuna" in result.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["-m", "--cfg", "job"],
            "-m: cannot be combined with --cfg or --info, which show the config of one job; leave it out",
        ),
        (["sweep.resume=nowhere", "-m"], "sweep.resume=nowhere: no such folder; name the folder of a sweep"),
        (["sweep.resume=."], "sweep.resume=.: resumes a sweep; add -m and the overrides of the sweep"),
        (["sweep.prune=asha"], "sweep.prune=asha: compares the runs of a sweep; add -m, or leave it out"),
        (["sweep.prune=hyperband", "-m"], "sweep.prune=hyperband: must be asha, or null for no pruning"),
        (["sweep.reduction_factor=1"], "sweep.reduction_factor=1: must be in 2..100"),
        (["sweep=everything", "-m"], "sweep=everything: must be optuna_lr, recipes, schedules_losses or"),
        (
            ["train.report=loss"],
            "train.report=loss: must be val_loss, nll, fd_classifier or fid, or null for the last loss",
        ),
        (["train.report_n=0"], "train.report_n=0: must be at least 1, or null"),
        (["train.report=fid", "train.report_n=5"], "train.report_n=5: must be at least 10, or null"),
        (["train.report=fd_classifier", "experiment=swiss_roll"], "train.report=fd_classifier: compares images, and"),
    ],
)
def test_invalid_sweep_override_is_refused(run: Run, tmp_path: Path, overrides: list[str], message: str) -> None:
    result = run("train", *overrides)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("launcher", "jobs", "jobs_at_once"),
    [
        ({}, 8, 1),
        ({"n_jobs": 3}, 8, 3),
        ({"n_jobs": 3}, 2, 2),
        ({"n_jobs": 3}, None, 3),
        ({"n_jobs": -1}, 8, 4),
        ({"n_jobs": -2}, 8, 3),
        ({"submitit_folder": "x"}, 3, 3),
        ({"submitit_folder": "x", "partition": None}, 3, 1),  # SLURM jobs run on different machines
    ],
)
def test_number_of_jobs_at_once(
    launcher: dict[str, Any], jobs: int | None, jobs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "cores", lambda: 4)
    assert at_once(launcher, jobs) == jobs_at_once


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Simulate a machine of 8 cores and 4 CUDA devices; return the devices and numbers of threads that are set."""
    chosen: dict[str, list[int]] = {"device": [], "threads": []}
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen["threads"].append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen["device"].append)
    return chosen


@pytest.mark.parametrize(("jobs_at_once", "threads"), [(2, 4), (3, 2), (16, 1)])
def test_jobs_divide_the_cores(jobs_at_once: int, threads: int, machine: dict[str, list[int]], tmp_path: Path) -> None:
    with share_of_machine(tmp_path, jobs_at_once, 1):
        assert machine["threads"] == [threads]


def test_jobs_at_the_same_time_have_different_devices(machine: dict[str, list[int]], tmp_path: Path) -> None:
    """The second job ends before the first, and the third one takes its device."""
    with share_of_machine(tmp_path, 2, 1):
        for _ in range(2):
            with share_of_machine(tmp_path, 2, 1):
                pass
    assert machine["device"] == [0, 1, 1]


def test_jobs_with_several_devices_divide_them(
    machine: dict[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with share_of_machine(tmp_path, 2, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
    with _free_number(tmp_path, 2), share_of_machine(tmp_path, 2, "auto"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert machine["device"] == []


@pytest.mark.parametrize(
    ("number", "side_by_side", "count", "devices", "expected"),
    [
        (0, 2, 8, "auto", [0, 1, 2, 3]),
        (1, 2, 8, "auto", [4, 5, 6, 7]),
        (2, 3, 8, 2, [4, 5]),
        (2, 3, 4, 2, [0, 1]),  # more jobs than devices
        (3, 4, 2, "auto", [1]),
        (0, 2, 0, 1, []),
    ],
)
def test_devices_of(number: int, side_by_side: int, count: int, devices: int | str, expected: list[int]) -> None:
    assert devices_of(number, side_by_side, count, devices) == expected


def test_single_job_uses_all_cores(machine: dict[str, list[int]], tmp_path: Path) -> None:
    with share_of_machine(tmp_path, 1, 1):
        assert machine == {"device": [], "threads": []}


@pytest.mark.slow
def test_jobs_of_two_processes(run: Run) -> None:
    """Check that each job has a folder, a row and the loss of a run of one process."""
    result = run("train", "-m", *SHORT, "schedule=linear,cosine", "devices=2", "device=cpu")
    assert result.code == 0, result.err
    assert [row["status"] for row in rows()] == ["done", "done"]
    assert run("train", *SHORT[:-1], "schedule=cosine", "out=single").code == 0
    expected = float(Path("single/metrics.csv").read_text().splitlines()[-1].split(",")[3])
    linear, cosine = (float(row["value"]) for row in rows())
    assert cosine == pytest.approx(expected, rel=1e-5)
    assert linear != pytest.approx(cosine, rel=1e-3)
    assert sorted(path.name for path in Path("sw/1").iterdir()) == sorted(
        path.name for path in Path("single").iterdir()
    )
