import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_cli.evaluation import classifier
from tests.conftest import TINY, TINY_POINTS, Result, train_into

Run = Callable[..., Result]


def evaluations(folder: Path | str) -> list[dict[str, float]]:
    return [json.loads(line)["metrics"] for line in Path(folder, "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("report", ["nll", "fd_classifier"])
def test_metric_equals_that_of_ddpm_evaluate(report: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "MIN_STEPS", 10)
    monkeypatch.setattr(classifier, "EPOCHS", 0)
    more = [*TINY, "schedule=cosine", "schedule.timesteps=8", "train.steps=2"]
    train_into(Path("run"), *more, f"train.report={report}", "train.report_n=12")
    metric = "nll" if report == "nll" else "fid"
    result = run("evaluate", "ckpt=run", f"metrics=[{metric}]", "n=12", "device=cpu", "out=new")
    assert result.code == 0, result.err
    ours, theirs = evaluations("run")
    assert ours.keys() == theirs.keys() == {report}
    assert ours[report] == pytest.approx(theirs[report], rel=1e-5)


def test_validation_loss_uses_ema_weights(run: Run) -> None:
    """With an EMA decay near 1, the loss is that of the initial weights, for any learning rate."""
    more = ["train.steps=3", "train.report=val_loss", "train.warmup_steps=0"]
    frozen = ["train.ema_warmup=false", "train.ema_decay=0.99999999"]
    found = []
    for name, lr in (("slow", 1e-9), ("fast", 0.1)):
        train_into(Path(name), *TINY, *more, *frozen, f"train.lr={lr}")
        found.append(evaluations(name)[0]["val_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    train_into(Path("moving"), *TINY, *more, "train.ema_decay=0", "train.lr=0.1")
    assert abs(evaluations("moving")[0]["val_loss"] - found[0]) > 1e-3


def test_validation_loss_of_points(run: Run) -> None:
    train_into(Path("run"), *TINY_POINTS, "train.steps=2", "train.report=val_loss")
    assert 0 < evaluations("run")[0]["val_loss"] < 10


def test_nothing_is_recorded_without_a_report(run: Run) -> None:
    train_into(Path("run"), *TINY, "train.steps=2")
    assert not Path("run/evaluations.jsonl").exists()
