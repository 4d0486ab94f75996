"""Training on shards, and evaluating what was trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, Result
from tests.data.shards import noise_png, write_folder

Run = Callable[..., Result]
IMAGES = [noise_png(i) for i in range(24)]


def data(root: Path) -> list[str]:
    return [*TINY[1:], "dataset=shards", f"dataset.root={root}", "dataset.image_size=8"]


def weights(folder: str) -> dict[str, torch.Tensor]:
    state = torch.load(f"{folder}/checkpoints/last.pt", weights_only=True)
    return {**state["model"], **{f"ema.{key}": value for key, value in state["ema"].items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_training_with_classes_resuming_and_evaluating(tmp_path: Path, run: Run) -> None:
    root = write_folder(tmp_path / "shards", IMAGES)
    typed = ["train", *data(root), "conditioning=class"]
    result = run(*typed, "train.steps=4", "train.report=val_loss", "out=whole")
    assert result.code == 0, result.err
    log = Path("whole/train.log").read_text()
    assert all(text in log for text in ("shards: 24 examples of 3x8x8\n", f" {root}\n", "24 to train, 2 held out\n"))
    state = torch.load("whole/checkpoints/last.pt", weights_only=True)
    assert (state["classes"], state["config"]["dataset"]["root"]) == (["a", "b"], None)
    assert json.loads(Path("whole/evaluations.jsonl").read_text())["metrics"].keys() == {"val_loss"}

    assert run(*typed, "train.steps=2", "out=part").code == 0
    moved = root.rename(tmp_path / "elsewhere")
    result = run("train", "resume=part", "train.steps=4")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"dataset.root={root}: no such folder" in result.err
    assert run("train", "resume=part", "train.steps=4", f"dataset.root={moved}").code == 0
    assert same(weights("part"), weights("whole"))

    result = run("evaluate", "ckpt=part", f"root={moved}", "metrics=[nll]", "n=2", "out=nll")
    assert result.code == 0, result.err


def test_resuming_on_other_shards_is_refused(tmp_path: Path, run: Run) -> None:
    root = write_folder(tmp_path / "shards", IMAGES)
    assert run("train", *data(root), "train.steps=1", "out=here").code == 0
    shutil.rmtree(root)
    write_folder(root, [noise_png(99), *IMAGES[1:]])
    result = run("train", "resume=here", "train.steps=2")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "the data are not those that it was trained on" in result.err


def test_image_that_is_damaged_while_training_is_named(tmp_path: Path, run: Run) -> None:
    root = write_folder(tmp_path / "shards", IMAGES)
    tar = root / "train-00001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(IMAGES[10], bytes(len(IMAGES[10]))))
    result = run("train", *data(root), "train.steps=3", "out=here")
    last = result.err.splitlines()[-1]
    assert result.code == 1
    assert last.startswith(f"ddpm-train: {tar}: the image of line 4 of train-00001.tsv cannot be read (ValueError: ")
    assert last.endswith("; ddpm-train resume=here continues from its last checkpoint")
    tar.write_bytes(whole)
    assert run("train", "resume=here").code == 0


def test_missing_shard_leaves_nothing(tmp_path: Path, run: Run) -> None:
    root = write_folder(tmp_path / "shards", IMAGES)
    (root / "train-00002.tar").unlink()
    result = run("train", *data(root), "train.steps=1", "out=here")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"dataset.root={root}: train-00002.tar: is missing" in result.err
    assert not Path("here").exists()


def test_classifier_distance_of_shards(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation reads both splits as tables."""
    monkeypatch.setattr("ddpm_cli.evaluation.classifier.MIN_STEPS", 2)
    root = write_folder(tmp_path / "shards", IMAGES)
    assert run("train", *data(root), "train.steps=1", "out=here").code == 0
    result = run("evaluate", "ckpt=here", "features=classifier", "n=10", "split=train", "out=new")
    assert result.code == 0, result.err
    assert "fd_classifier" in json.loads(Path("new/evaluation.json").read_text())["metrics"]


def test_forward_decodes_only_what_it_shows(tmp_path: Path, run: Run) -> None:
    root = write_folder(tmp_path / "shards", IMAGES)
    typed = ["forward", "dataset=shards", f"dataset.root={root}", "dataset.image_size=8", "t=[0,10]"]
    (root / "train-00002.tar").write_bytes(bytes((root / "train-00002.tar").stat().st_size))
    assert run(*typed, "index=2", "out=new").code == 0
    result = run(*typed, "index=24", "out=other")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "index=24: must be in 0..23, the images of the dataset" in result.err


@pytest.mark.slow
def test_resume_with_two_and_four_processes_has_the_bits_of_an_image_folder(tmp_path: Path, run: Run) -> None:
    """Steps 1 and 2 in one process, 3 and 4 in two, 5 and 6 in four."""
    order = sorted(range(24), key=lambda i: (i % 2, i))
    for i in order:
        file = tmp_path / "folder" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(IMAGES[i])
    folder = [*TINY[1:], "dataset=image_folder", f"dataset.root={tmp_path}/folder", "dataset.image_size=8"]
    shards = data(write_folder(tmp_path / "shards", [IMAGES[i] for i in order]))
    for name, typed in (("table", [*folder, "dataset.test_fraction=0"]), ("stream", shards)):
        assert run("train", *typed, "train.steps=2", f"out={name}").code == 0
        for devices, steps in ((2, 4), (4, 6)):
            result = run("train", f"resume={name}", f"train.steps={steps}", f"devices={devices}")
            assert result.code == 0, result.err
    assert same(weights("stream"), weights("table"))
