"""The names of a run's classes decide which number a network is told, whatever the data have now."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_cli.evaluation import classifier
from tests.conftest import TINY, Result
from tests.data.folders import folder_overrides, write_images

Run = Callable[..., Result]
MORE = ["conditioning=class", "train.steps=4", "train.lr=0.01", "train.warmup_steps=0", "schedule.timesteps=8"]
ALL = {"train/a": 6, "train/b": 6, "train/c": 6, "test/b": 6, "test/c": 6}


def refused(result: Result, message: str) -> None:
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert message in result.err


def metrics(file: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(file).read_text().splitlines()[-1])["metrics"]
    return found


def typed(root: Path | str, *overrides: str) -> list[str]:
    return [*TINY[1:], *folder_overrides(Path(root)), *MORE, *overrides]


@pytest.mark.parametrize("report", ["val_loss", "nll"])
def test_report_does_not_depend_on_an_empty_class_of_the_test_split(report: str, run: Run) -> None:
    """The images are the same, and test/ once has a folder a, whose only file is skipped."""
    write_images(Path("few"), ALL)
    shutil.copytree("few", "all")
    Path("all/test/a").mkdir()
    Path("all/test/a/broken.png").write_text("broken")
    for root in ("few", "all"):
        more = [f"train.report={report}", "train.report_n=12", "dataset.skip_broken=true", f"out=run-{root}"]
        result = run("train", *typed(root, *more))
        assert result.code == 0, result.err
    assert metrics("run-few/evaluations.jsonl") == metrics("run-all/evaluations.jsonl")


@pytest.mark.parametrize("more", [[], ["train.report=val_loss"], ["evaluate.every=1"]])
def test_class_of_the_test_split_alone_is_refused_before_training(more: list[str], run: Run) -> None:
    write_images(Path("data"), {"train/b": 2, "train/c": 2, "test/a": 2, "test/b": 2})
    result = run("train", *typed("data", *more, "out=run"))
    refused(result, "dataset.root=data: the train split has no images of a, and the test split does; train on some, ")
    assert not Path("run").exists()


def test_unconditional_training_does_not_mind_other_folders(run: Run) -> None:
    write_images(Path("data"), {"train/b": 2, "test/a": 2})
    more = ["conditioning=none", "train.steps=1", "train.report=val_loss", "out=run"]
    assert run("train", *typed("data", *more)).code == 0
    assert metrics("run/evaluations.jsonl").keys() == {"val_loss"}


def test_evaluation_by_the_names_of_the_run(run: Run) -> None:
    """The same images with a further class a in the data, of which no image is evaluated, have the same bound."""
    write_images(Path("data"), {"train/b": 4, "train/c": 4, "test/b": 4, "test/c": 4})
    assert run("train", *typed("data", "out=run")).code == 0
    shutil.copytree("data", "more")
    write_images(Path("more"), {"train/a": 1})
    for root in ("data", "more"):
        result = run("evaluate", "ckpt=run", f"root={root}", "metrics=[nll]", "n=8", "device=cpu", f"out={root}-nll")
        assert result.code == 0, result.err
    found = [json.loads(Path(f"{root}-nll/evaluation.json").read_text())["metrics"] for root in ("data", "more")]
    assert found[0] == found[1]
    result = run("evaluate", "ckpt=run", "root=more", "split=train", "metrics=[nll]", "n=9", "out=new")
    refused(result, "split=train: this split has images of a, and the network was trained on b, c; use data of these")
    assert not Path("new").exists()


def test_resume_by_the_names_of_the_run(run: Run) -> None:
    """A class that is gone leaves the numbers of the others. A new one is refused, whatever may change."""
    write_images(Path("data"), ALL)
    assert run("train", *typed("data", "out=run")).code == 0
    shutil.rmtree("data/train/a")
    refused(run("train", "resume=run", "train.steps=5"), "the data are not those that it was trained on")
    changed = ["resume=run", "resume_data_changed=true", "train.report=val_loss"]
    result = run("train", *changed, "train.steps=5")
    assert result.code == 0, result.err
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["classes"] == ["a", "b", "c"]
    assert run("train", "resume=run", "train.steps=6").code == 0  # the same data as before
    write_images(Path("data"), {"train/zebra": 1})
    refused(run("train", *changed, "train.steps=7"), "resume=run: the train split has images of zebra, and the network")
    shutil.rmtree("data/train/zebra")
    write_images(Path("data"), {"test/zebra": 1})
    result = run("train", "resume=run", "train.report=val_loss", "train.steps=7")
    refused(result, "train.report=val_loss: the test split has images of zebra, and the network knows a, b, c")


def test_weights_of_other_classes_start_anew(run: Run) -> None:
    """They have the same shape, but the numbers mean other names."""
    for root, names in (("one", "ab"), ("same", "ab"), ("other", "bc")):
        write_images(Path(root), {f"{split}/{name}": 2 for split in ("train", "test") for name in names})
    assert run("train", *typed("one", "out=first")).code == 0
    for root, anew in (("same", False), ("other", True)):
        result = run("train", "init=first", *typed(root, "train.steps=1", f"out=run-{root}"))
        assert result.code == 0, result.err
        assert ("embedding.classes.weight" in Path(f"run-{root}/train.log").read_text()) == anew


def test_accuracy_of_a_test_split_that_lacks_a_class(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes differ so much that a classifier finds all of them."""
    monkeypatch.setattr(classifier, "MIN_STEPS", 100)
    write_images(Path("data"), {"train/a": 8, "train/b": 8, "train/c": 8, "test/b": 8, "test/c": 8})
    assert run("train", *typed("data", "conditioning=none", "out=run")).code == 0
    result = run("evaluate", "ckpt=run", "features=classifier", "n=10", "device=cpu", "out=new")
    assert result.code == 0, result.err
    assert json.loads(Path("new/evaluation.json").read_text())["classifier"]["accuracy"] == 1
    write_images(Path("data"), {"test/zebra": 1})
    result = run("evaluate", "ckpt=run", "features=classifier", "n=10", "device=cpu", "out=other")
    refused(result, "features=classifier: the test split has images of zebra, and the train split has a, b, c")


def test_names_that_differ_in_case_alone() -> None:
    from ddpm_cli.sampling.tasks import wanted_classes

    classes = ["Cat", "big_cat", "big cat", "cat"]
    assert [wanted_classes(name, classes, []) for name in classes] == [[0], [1], [2], [3]]
    assert wanted_classes("BIG-CAT", classes, []) in ([1], [2])
