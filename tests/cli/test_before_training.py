"""What the metrics of a run need from its data is looked at before the run starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, TINY_POINTS, Result, train_into
from tests.data.folders import folder_overrides, write_images

Run = Callable[..., Result]
REPORT, FD, MILESTONE = ["train.report=val_loss"], ["train.report=fd_classifier"], ["evaluate.every=1"]
SPLITS = {"data/train/a": 4, "data/train/b": 4}


def train(run: Run, *overrides: str) -> Result:
    return run("train", *TINY[1:], *folder_overrides(Path("data")), "train.steps=1", "out=run", *overrides)


def refused(result: Result, message: str) -> None:
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert message in result.err
    assert not Path("run").exists()


@pytest.mark.parametrize("more", [REPORT, ["train.report=nll"], FD, MILESTONE])
def test_no_test_images(more: list[str], run: Run) -> None:
    write_images(Path("data"), {"a": 4})
    message = "dataset.root=data: no images for testing with dataset.test_fraction=0.0"
    refused(train(run, "dataset.test_fraction=0", *more), message)
    assert train(run, "dataset.test_fraction=0").code == 0


@pytest.mark.parametrize("more", [REPORT, MILESTONE])
def test_broken_test_image(more: list[str], run: Run) -> None:
    write_images(Path(), {**SPLITS, "data/test/a": 4})
    Path("data/test/a/x.png").write_text("broken")
    refused(train(run, *more), "data/test/a/x.png cannot be decoded")
    assert train(run).code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (FD, "train.report=fd_classifier: these data have no labels to train a classifier on; use val_loss"),
        (MILESTONE, "evaluate.metric=fd_classifier: these data have no labels to train a classifier on; use fid"),
    ],
)
def test_test_images_without_labels(more: list[str], message: str, run: Run) -> None:
    write_images(Path(), {**SPLITS, "data/test": 4})
    refused(train(run, *more), message)


@pytest.mark.parametrize(("more", "key"), [(FD, "train.report"), (MILESTONE, "evaluate.metric")])
def test_a_single_test_image(more: list[str], key: str, run: Run) -> None:
    """It has no covariance."""
    write_images(Path(), {**SPLITS, "data/test/a": 1})
    message = (
        f"{key}=fd_classifier: compares at least 2 images of each split, and the test split has 1; use more images"
    )
    refused(train(run, *more), message)


def test_class_of_the_test_split_alone(run: Run) -> None:
    write_images(Path(), {**SPLITS, "data/test/zebra": 4})
    message = "train.report=fd_classifier: the test split has images of zebra, and the train split has a, b; use data"
    refused(train(run, *FD), message)


def test_metric_of_a_resumed_run_is_checked_for_its_own_data(run: Run) -> None:
    """The dataset that is typed with resume= is not that of the run, which has points."""
    train_into(Path("points"), *TINY_POINTS, "train.steps=1")
    result = run("train", "resume=points", "train.steps=2", "train.report=fid")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert "train.report=fid: compares images, and dataset=swiss_roll has points; leave it out" in result.err
    assert not Path("points/checkpoints/step_00000002.pt").exists()
