"""The classes of the train split number both splits, in all datasets of images."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm_cli.data.sources import open_examples
from ddpm_cli.data.table import Examples, StreamedExamples, fingerprint, numbered_by
from ddpm_cli.errors import UserError
from tests.conftest import composed
from tests.data.folders import write_images
from tests.data.shards import write_shard


def png(label: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 40 * label).save(buffer, format="PNG")
    return buffer.getvalue()


def as_folder(root: Path, train: list[str], test: list[str]) -> str:
    write_images(root, {f"{split}/{name}": 1 for split, names in (("train", train), ("test", test)) for name in names})
    return "image_folder"


def as_shards(root: Path, train: list[str], test: list[str]) -> str:
    """Write shards whose classes are those of both splits, as any program may."""
    root.mkdir()
    classes = sorted({*train, *test})
    splits = {
        split: [write_shard(root / f"{split}.tar", [png(i) for i, _ in enumerate(names)], [*map(classes.index, names)])]
        for split, names in (("train", train), ("test", test))
    }
    (root / "shards.json").write_text(json.dumps({"format": 1, "classes": classes, **splits}))
    return "shards"


def as_parquet(root: Path, train: list[str], test: list[str]) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir()
    for split, names in (("train", train), ("test", test)):
        images = [png(i) for i, _ in enumerate(names)]
        parquet.write_table(pyarrow.table({"image": images, "label": names}), root / f"{split}.parquet")
    return "parquet"


Writer = Callable[[Path, list[str], list[str]], str]
WRITERS = pytest.mark.parametrize("write", [as_folder, as_shards, as_parquet])


def opened(write: Writer, root: Path, train: list[str], test: list[str]) -> dict[bool, Examples | StreamedExamples]:
    dataset = composed(f"dataset={write(root, train, test)}", f"dataset.root={root}", "dataset.image_size=8").dataset
    return {split: open_examples(dataset, split) for split in (True, False)}


def named(examples: Examples | StreamedExamples) -> list[str]:
    return [examples.classes[label] for label in torch.as_tensor(examples.labels).tolist()]


@WRITERS
def test_class_that_the_test_split_lacks(write: Writer, tmp_path: Path) -> None:
    found = opened(write, tmp_path / "data", ["a", "b", "c"], ["b", "c"])
    for split, labels in ((True, [0, 1, 2]), (False, [1, 2])):
        assert found[split].classes == ["a", "b", "c"]
        assert torch.as_tensor(found[split].labels).tolist() == labels
    assert found[True].held_out == []


@WRITERS
def test_class_that_the_train_split_lacks(write: Writer, tmp_path: Path) -> None:
    """The name sorts first, so that the numbers of the others would change."""
    found = opened(write, tmp_path / "data", ["b", "c"], ["a", "b"])
    assert found[True].held_out == ["a"]
    assert named(found[False]) == ["a", "b"]
    with pytest.raises(UserError, match=r"^test has images of a, and the run has b, c; use data of these classes$"):
        numbered_by(["b", "c"], found[False], "test", "the run has")
    assert torch.as_tensor(numbered_by(["b", "c"], found[True], "train", "").labels).tolist() == [0, 1]


def test_class_whose_only_image_is_held_out_at_random(tmp_path: Path) -> None:
    """Chance decides about the split, so both have all classes."""
    root = write_images(tmp_path / "data", dict.fromkeys("abcdef", 1))
    typed = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", "dataset.test_fraction=0.34"]
    train, test = (open_examples(composed(*typed).dataset, split) for split in (True, False))
    assert train.classes == test.classes == [*"abcdef"]
    assert sorted(named(train) + named(test)) == [*"abcdef"]
    assert train.held_out == named(test)


def test_split_with_an_image_in_no_folder_has_no_labels(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"train/a": 1, "train/b": 1, "test/b": 1, "test": 1})
    dataset = composed("dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8").dataset
    train, test = (open_examples(dataset, split) for split in (True, False))
    assert (named(train), test.labels) == (["a", "b"], None)
    with pytest.raises(UserError, match=r"^test has no labels, and the run has a, b; use data of these classes$"):
        numbered_by(["a", "b"], test, "test", "the run has")


EXAMPLES = Examples(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 2, 1, 0]), ["a", "c", "d"])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a", "c", "d"], [1, 2, 1, 0]),
        (["d", "c", "a"], [1, 0, 1, 2]),
        (["a", "b", "c", "d"], [2, 3, 2, 0]),
    ],
)
def test_labels_by_another_table_of_names(names: list[str], labels: list[int]) -> None:
    found = numbered_by(names, EXAMPLES, "train", "the run has")
    assert (torch.as_tensor(found.labels).tolist(), found.classes) == (labels, names)
    assert fingerprint(found) == fingerprint(Examples(EXAMPLES.values, torch.tensor(labels), names))


def test_name_without_images_need_not_be_known() -> None:
    found = numbered_by(["b", "a"], Examples(EXAMPLES.values, torch.tensor([1, 1, 0, 0]), ["a", "b", "zebra"]), "", "")
    assert torch.as_tensor(found.labels).tolist() == [0, 0, 1, 1]


def test_unknown_classes_are_named_and_many_are_cut() -> None:
    many = Examples(torch.zeros(9, 1, 2, 2), torch.arange(9), [*"abcdefghi"])
    with pytest.raises(UserError, match=r"^x has images of b, c, d, e, f, …, and y a; use data of these classes$"):
        numbered_by(["a"], many, "x", "y")
