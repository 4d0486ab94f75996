"""Sweeps in which bad runs are ended early."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_cli.report.runs import find_runs
from ddpm_cli.sweeps.jobs_csv import jobs_of
from ddpm_cli.sweeps.pruning import read_rungs
from tests.cli.test_sweep import SHORT
from tests.conftest import Result

Run = Callable[..., Result]
PRUNED = ["sweep.prune=asha", "sweep.reduction_factor=2", "train.steps=24", "train.milestone_every=3", "log_every=3"]


@pytest.mark.parametrize("report", ["null", "val_loss"])
def test_bad_run_is_pruned(run: Run, report: str) -> None:
    """The second run does not learn. It ends at the first milestone, counts as finished, and the report shows it."""
    settings = [*PRUNED, "train.warmup_steps=0", f"train.report={report}", "train.lr=1e-2,1e-9"]
    result = run("train", "-m", *SHORT, *settings)
    assert result.code == 0, result.err
    good, bad = jobs_of(Path("sw")).values()
    assert (good.status, bad.status) == ("done", "pruned")
    assert good.value is not None
    assert bad.value is not None
    assert bad.value > good.value
    rungs = read_rungs(Path("sw"))
    assert [(rung.job, rung.rung, rung.pruned) for rung in rungs] == [(0, k, False) for k in range(3)] + [(1, 0, True)]
    assert rungs[-1].value == pytest.approx(bad.value, rel=1e-6)
    assert Path("sw/1/metrics.csv").read_text().splitlines()[-1].startswith("3,")
    again = run("train", "-m", *SHORT[:-1], *settings, "sweep.resume=sw")
    assert "job 1 is pruned" in again.err
    assert jobs_of(Path("sw"))[1].value == bad.value
    assert [job.status for job in jobs_of(Path("sw")).values()] == ["done", "pruned"]
    assert [one.pruned for one in find_runs(["sw"])] == [False, True]


@pytest.mark.slow
def test_bad_run_of_two_processes_is_pruned(run: Run) -> None:
    settings = [*PRUNED, "train.warmup_steps=0", "train.lr=1e-2,1e-9", "devices=2", "train.report=val_loss"]
    assert run("train", "-m", *SHORT, *settings).code == 0
    assert [job.status for job in jobs_of(Path("sw")).values()] == ["done", "pruned"]
