"""Some images of a dataset are chosen at random, because its first ones are of one class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import chosen
from ddpm_cli.evaluation import evaluate as module
from ddpm_cli.evaluation import run_metrics
from tests.conftest import TINY, Result, composed, train_into
from tests.data.folders import folder_overrides, write_images

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 40 dark and then 40 bright images in either split."""
    places = {f"{split}/{name}": 40 for split in ("train", "test") for name in "ac"}
    return write_images(tmp_path_factory.mktemp("data"), places)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = folder_overrides(data, "schedule.timesteps=8", "train.steps=1")
    return train_into(tmp_path_factory.mktemp("run") / "here", *TINY[1:], *more)


@pytest.fixture(autouse=True)
def _quick_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_cli.evaluation import classifier

    monkeypatch.setattr(classifier, "MIN_STEPS", 10)
    monkeypatch.setattr(classifier, "EPOCHS", 0)


def both(images: Tensor) -> bool:
    """Return whether a third of the images or more are of each class, dark or bright."""
    bright = images.flatten(1).float().mean(1) > 128
    return bool(1 / 3 <= bright.float().mean() <= 2 / 3)


def test_choice_is_a_permutation_that_does_not_depend_on_its_length() -> None:
    order = chosen(100, 100)
    assert sorted(order.tolist()) == [*range(100)]
    assert torch.equal(chosen(100, 30), order[:30])
    assert torch.equal(chosen(100, 1000), order)


def test_values_and_labels_are_of_the_same_examples(data: Path) -> None:
    dataset = composed(*folder_overrides(data)).dataset
    every, some = load_examples(dataset, train=False), load_examples(dataset, train=False, n=24)
    numbers = chosen(80, 24)
    assert torch.equal(some.values, every.values[numbers])
    assert torch.equal(torch.as_tensor(some.labels), torch.as_tensor(every.labels)[numbers])
    assert both(some.values)


def test_nll_of_ddpm_evaluate(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    bound = module.bound

    def spy(trained: Any, examples: Any, *rest: Any) -> Any:
        seen.append(examples.values)
        return bound(trained, examples, *rest)

    monkeypatch.setattr(module, "bound", spy)
    assert run("evaluate", f"ckpt={trained}", "metrics=[nll]", "n=24", "device=cpu", "out=new").code == 0
    assert len(seen[0]) == 24
    assert both(seen[0])


def test_nll_of_a_report(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    bound = run_metrics.bound

    def spy(trained: Any, examples: Any, *rest: Any) -> Any:
        seen.append(examples.values)
        return bound(trained, examples, *rest)

    monkeypatch.setattr(run_metrics, "bound", spy)
    more = ["schedule.timesteps=8", "train.steps=1", "train.report=nll", "train.report_n=24"]
    train_into(tmp_path / "run", *TINY[1:], *folder_overrides(data), *more)
    assert len(seen[0]) == 24
    assert both(seen[0])


@pytest.mark.parametrize("n", ["n=24", "n=null"])
def test_given_samples(n: str, run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures and the nearest images are those of the first samples."""
    shown: list[Tensor] = []
    nearest = module.nearest

    def spy(images: Tensor, *rest: Any) -> Any:
        shown.append(images)
        return nearest(images, *rest)

    monkeypatch.setattr(module, "nearest", spy)
    typed = [f"samples={data}/test", *folder_overrides(data), "metrics=[fid]", "features=classifier", "device=cpu"]
    result = run("evaluate", *typed, n, "batch_size=7", "out=new")
    assert result.code == 0, result.err
    count = 24 if n == "n=24" else 80
    assert json.loads(Path("new/evaluation.json").read_text())["n"] == count
    assert [len(images) for images in shown] == [min(count, 64)] * 2
    assert all(both(images) for images in shown)  # the samples, and the test images that they are compared with
