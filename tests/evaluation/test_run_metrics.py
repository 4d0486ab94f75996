"""Measurements while a run trains: when they are due, what they write, and the rule that ends a run."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_cli.evaluation.run_metrics import Measurement, MilestoneEvaluator, without_improvement
from ddpm_cli.tracking.timeline import new_timeline
from tests.conftest import TINY, Result, composed

Run = Callable[..., Result]

MEASURED = [*TINY, "train.steps=8", "train.milestone_every=2", "evaluate.every=2", "evaluate.n=12", "train.log_every=1"]


@pytest.fixture(autouse=True)
def quick_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_cli.evaluation import classifier

    monkeypatch.setattr(classifier, "MIN_STEPS", 10)
    monkeypatch.setattr(classifier, "EPOCHS", 0)


def rows(folder: str) -> dict[int, dict[str, str]]:
    with Path(folder, "metrics.csv").open() as stream:
        return {int(row["step"]): row for row in csv.DictReader(stream)}


def values(folder: str) -> dict[int, float]:
    return {step: float(row["fd_classifier"]) for step, row in rows(folder).items() if row["fd_classifier"]}


def test_measurements_are_written_and_the_best_checkpoint_is_kept(run: Run) -> None:
    result = run("train", *MEASURED, "checkpoint.keep_last=1", "out=run")
    assert result.code == 0, result.err
    found = values("run")
    assert list(found) == [4, 8]
    records = [json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 8]
    for record in records:
        assert record["metrics"]["fd_classifier"] == pytest.approx(found[record["step"]], rel=1e-6)
        low, high = record["intervals"]["fd_classifier"]
        assert float(rows("run")[record["step"]]["fd_classifier_error"]) == pytest.approx((high - low) / 2, rel=1e-6)
    best = torch.load("run/checkpoints/best.pt", weights_only=True)["step"]
    assert best == min(found, key=lambda step: found[step])
    evaluated = run("evaluate", "ckpt=run/checkpoints/best.pt", "n=12", "batch_size=8", "device=cpu", "out=again")
    assert evaluated.code == 0, evaluated.err
    again = json.loads(Path("again/evaluation.json").read_text())["metrics"]["fd_classifier"]
    assert again == pytest.approx(found[best], rel=1e-4)


def test_training_is_the_same_with_measurements(run: Run) -> None:
    assert run("train", *MEASURED, "out=a").code == 0
    assert run("train", *MEASURED, "evaluate.every=null", "out=b").code == 0
    a, b = (torch.load(f"{name}/checkpoints/last.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(a[kind][name], b[kind][name]) for kind in ("model", "ema") for name in a[kind])
    losses = [[row["loss"] for row in rows(name).values()] for name in "ab"]
    assert losses[0] == losses[1]


def test_measurement_that_a_kill_prevented_is_made_on_resume(run: Run) -> None:
    assert run("train", *MEASURED, "train.steps=4", "out=run").code == 0
    first = values("run")
    path = Path("run/metrics.csv")
    head, *lines = path.read_text().splitlines()
    lines[-1] = ",".join(lines[-1].split(",")[:-2]) + ",,"  # as it is before the measurement
    path.write_text("\n".join([head, *lines, ""]))
    assert run("train", "resume=run", "train.steps=6").code == 0
    assert values("run")[4] == first[4]


def test_measurements_of_other_numbers_of_samples_are_not_compared(run: Run) -> None:
    """A distance is larger for fewer samples, so best.pt and train.stop_when would go by the number."""
    assert run("train", *MEASURED, "train.steps=2", "out=run").code == 0
    result = run("train", "resume=run", "train.steps=4", "evaluate.n=20")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "evaluate.n=20: this run has measurements of 12 samples, which other ones cannot be compared" in result.err
    assert run("train", "resume=run", "train.steps=4", "evaluate.n=12").code == 0


def test_run_without_improvement_ends(run: Run) -> None:
    stop = [
        "train.stop_when=fd_classifier",
        "train.patience=1",
        "train.lr=1e-9",
        "train.warmup_steps=0",
        "evaluate.every=1",
    ]
    result = run("train", *MEASURED, *stop, "train.steps=100", "out=run")
    assert result.code == 0, result.err
    assert list(values("run")) == [2, 4]
    assert "fd_classifier has not improved in the last measurement. To train the rest:" in result.err
    assert "Training finished: run" in result.err


def test_each_measurement_is_compared_with_the_last_improvement() -> None:
    def count(*found: tuple[float, float]) -> int:
        return without_improvement([Measurement(i, value, error) for i, (value, error) in enumerate(found)])

    assert count() == 0
    assert count((5, 1)) == 0
    assert count((5, 1), (4.5, 1), (4.2, 1)) == 2  # within the error of the first
    assert count((5, 1), (4.5, 1), (3.9, 1)) == 0  # small steps add up
    assert count((5, 1), (3, 0.1), (4, 0.1), (2.95, 0.1)) == 2
    assert count((math.nan, 1), (3, 1)) == 0


def test_due_milestones() -> None:
    config = composed(*TINY, "train.steps=11", "train.milestone_every=2", "evaluate.every=2")
    evaluator = MilestoneEvaluator(config, None)  # type: ignore[arg-type]
    timeline = new_timeline(config.train, 100)
    assert [step for step in (2, 4, 6, 8, 10, 11) if evaluator.is_due(step, timeline)] == [4, 8, 11]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.every=0"], "evaluate.every=0: must be a number of milestones from 1 up, or null for none"),
        (["evaluate.metric=nll"], "evaluate.metric=nll: must be fd_classifier or fid"),
        (["evaluate.n=3"], "evaluate.n=3: must be in 10..10000000"),
        (
            ["train.stop_when=fid", "evaluate.every=1"],
            "train.stop_when=fid: is not measured; add evaluate.every=1 eval",
        ),
        (["train.stop_when=fd_classifier"], "train.stop_when=fd_classifier: is not measured; add evaluate.every=1"),
        (
            ["evaluate.every=1", "dataset=swiss_roll", "model=mlp"],
            "evaluate.metric=fd_classifier: compares images, and",
        ),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str, run: Run) -> None:
    result = run("train", "device=cpu", *overrides)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
