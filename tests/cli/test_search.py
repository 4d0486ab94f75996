"""Searches with Optuna: their result, failed trials, and searches that were stopped and are resumed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from ddpm_cli.errors import Stopped
from ddpm_cli.sweeps import study
from ddpm_cli.sweeps.jobs_csv import jobs_of
from ddpm_cli.training import start as in_process
from tests.cli.test_sweep import SHORT, rows
from tests.conftest import Result

Run = Callable[..., Result]
SEARCH = ["train", "-m", "sweep=optuna_lr", *SHORT[:-1], "steps=4", "train.milestone_every=2", "train.report=null"]


def test_optuna_minimises_the_validation_loss(run: Run) -> None:
    """Check that the trials use different learning rates, and that the best one has the smallest value."""
    result = run("train", "-m", "sweep=optuna_lr", *SHORT, "hydra.sweeper.n_trials=3")
    assert result.code == 0, result.err
    best = yaml.safe_load(Path("sw/optimization_results.yaml").read_text())
    values = [job.value for job in jobs_of(Path("sw")).values()]
    assert len(values) == 3
    assert best["best_value"] == min(value for value in values if value is not None)
    rates = [yaml.safe_load(Path(f"sw/{job}/.hydra/config.yaml").read_text())["train"]["lr"] for job in range(3)]
    assert len(set(rates)) == 3
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert best["best_params"]["train.lr"] == rates[values.index(best["best_value"])]


def test_optuna_continues_after_a_failed_trial(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = in_process._run_loop, []

    def faulty(trainer: Any, *rest: Any) -> float:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a fault")
        return real(trainer, *rest)

    monkeypatch.setattr(in_process, "_run_loop", faulty)
    result = run("train", "-m", "sweep=optuna_lr", *SHORT, "hydra.sweeper.n_trials=3")
    assert result.code == 1
    assert [row["status"] for row in rows()] == ["failed", "done", "done"]


def trials_of(folder: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study("sweep", f"sqlite:///{Path(folder).absolute()}/study.db").trials


def rate_of(folder: str) -> float:
    return float(yaml.safe_load(Path(folder, ".hydra/config.yaml").read_text())["train"]["lr"])


@pytest.fixture
def stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stop a search of five trials in the third, after two steps; return a list of the steps that runs start at."""
    real, starts = in_process._run_loop, list[int]()

    def stop_in_third_job(job: Any, trainer: Any, *rest: Any) -> float:
        starts.append(trainer.step)
        step = trainer.train_step

        def train_step() -> Any:
            if trainer.step == 2:
                raise Stopped(signal.SIGTERM, "stopped after step 2")
            return step()

        if len(starts) == 3:
            trainer.train_step = train_step
        return real(job, trainer, *rest)

    monkeypatch.setattr(in_process, "_run_loop", stop_in_third_job)
    result = run(*SEARCH, "hydra.sweeper.n_trials=5", "hydra.sweep.dir=sw")
    assert result.code == 128 + signal.SIGTERM, result.err
    assert [row["job"] for row in rows()] == ["0", "1"]
    assert [trial.state.name for trial in trials_of("sw")] == ["COMPLETE", "COMPLETE", "RUNNING"]
    return starts


def test_stopped_search_goes_on(run: Run, stopped: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is repeated in another folder. Two trials are finished, one is resumed and two are new."""
    values, rates = [job.value for job in jobs_of(Path("sw")).values()], [rate_of(f"sw/{job}") for job in range(3)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = run(*SEARCH, "hydra.sweeper.n_trials=5", "sweep.resume=../sw")
    assert result.code == 0, result.err
    assert stopped == [0, 0, 0, 2, 0, 0]
    trials, jobs = trials_of("../sw"), jobs_of(Path("../sw"))
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5
    assert [trial.value for trial in trials] == [job.value for job in jobs.values()]
    assert [trial.value for trial in trials[:2]] == values
    assert [trial.params["train.lr"] for trial in trials] == [rate_of(f"../sw/{job}") for job in range(5)]
    assert [trial.params["train.lr"] for trial in trials[:3]] == rates
    assert len({trial.params["train.lr"] for trial in trials}) == 5
    best = yaml.safe_load(Path("../sw/optimization_results.yaml").read_text())
    assert best["best_value"] == min(trial.value for trial in trials)


@pytest.mark.slow
def test_search_stopped_again_while_it_is_resumed(run: Run, stopped: list[int]) -> None:
    """Trials that wait in the queue are not lost, and a finished search is extended by a larger number of trials."""
    rates = [rate_of(f"sw/{job}") for job in range(3)]
    study.store_study(study.Study(0), Path("sw"))  # the second attempt ends before its first trial
    assert [trial.state.name for trial in trials_of("sw")] == ["WAITING"] * 3
    for n in (3, 4):
        result = run(*SEARCH, f"hydra.sweeper.n_trials={n}", "sweep.resume=sw")
        assert result.code == 0, result.err
        assert [trial.state.name for trial in trials_of("sw")] == ["COMPLETE"] * n
    assert [trial.params["train.lr"] for trial in trials_of("sw")[:3]] == rates
    assert stopped == [0, 0, 0, 2, 0]


def test_resumed_search_with_new_random_numbers(tmp_path: Path) -> None:
    """Trials of the queue use no random numbers, so the sampler would draw the same values again."""
    first = study.store_study(study.Study(7), tmp_path)
    assert "hydra.sweeper.sampler.seed=7" in first
    new = optuna.create_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/study.db")
    for value in (0.5, 0.25):
        new.tell(new.ask({"x": optuna.distributions.UniformDistribution(0, 1)}), value)
    assert "hydra.sweeper.sampler.seed=9" in study.store_study(study.Study(7), tmp_path)
    assert not any("seed" in override for override in study.store_study(study.Study(None), tmp_path))
    queued = [trial.system_attrs["fixed_params"] for trial in trials_of(str(tmp_path))]
    assert queued == [trial.params for trial in new.trials]  # although they waited already


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=optuna_lr", "hydra.sweeper.storage=sqlite:///x.db"], "hydra.sweeper.storage: not with sweep.resume="),
        (
            ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid"],
            "hydra/sweeper/sampler=grid: such a search cannot be resumed",
        ),
    ],
)
def test_search_that_cannot_be_resumed(run: Run, overrides: list[str], message: str) -> None:
    Path("sw").mkdir()
    result = run("train", "-m", *overrides, "sweep.resume=sw")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(Path("sw").iterdir()) == []


def test_damaged_study(run: Run) -> None:
    Path("sw").mkdir()
    Path("sw/study.db").write_bytes(b"no database at all" * 100)
    result = run(*SEARCH, "sweep.resume=sw")
    assert result.code == 2
    assert "study.db: is not a study of Optuna; remove it" in result.err


def test_newer_sqlalchemy_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "version", lambda name: {"sqlalchemy": "2.0.1"}[name])
    result = run(*SEARCH)
    assert result.code == 2
    assert "with SQLAlchemy 1.4, and 2.0.1 is installed; pip install 'sqlalchemy<2'" in result.err
    assert list(tmp_path.iterdir()) == []
