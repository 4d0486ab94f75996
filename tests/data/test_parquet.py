import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ddpm_cli.data.decoding import decode_image
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from tests.conftest import TINY, Result, composed
from tests.data.shards import noise_png
from tests.data.test_image_folder import write_bomb

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

Run = Callable[..., Result]
IMAGES = [noise_png(i) for i in range(20)]


def write(
    file: Path,
    images: Sequence[Any],
    labels: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    **how: Any,
) -> Path:
    """Write a file as the datasets library does: structs of bytes and path, and the features in the metadata."""
    columns = {"image": [{"bytes": content, "path": "/etc/passwd"} for content in images]}
    if labels is not None:
        columns["label"] = labels  # type: ignore[assignment]
    table = pyarrow.table(columns)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=6, **how)
    return file


def load(root: Path, *overrides: str, train: bool = True) -> Examples:
    typed = ["dataset=parquet", f"dataset.root={root}", "dataset.image_size=8", "dataset.test_fraction=0", *overrides]
    return load_examples(composed(*typed).dataset, train)


def decoded(images: Sequence[bytes]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(decode_image(content, 8, 8, 3).copy()) for content in images])


def test_images_and_named_classes(tmp_path: Path) -> None:
    labels = [i % 3 for i in range(20)]
    examples = load(write(tmp_path / "x.parquet", IMAGES, labels, ["ant", "bee", "cat", "dog"]))
    assert torch.equal(examples.values, decoded(IMAGES))
    assert torch.as_tensor(examples.labels).tolist() == labels
    assert examples.classes == ["ant", "bee", "cat", "dog"]
    assert examples.counts == "20 to train, 0 held out"


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", "c", "a"], ["a", "b", "c"], [1, 0, 2, 0]),
        ([7, 3, 7, 10], ["3", "7", "10"], [1, 0, 1, 2]),
        (pyarrow.array(["b", "a", "b", "b"]).dictionary_encode(), ["a", "b"], [1, 0, 1, 1]),
    ],
)
def test_values_of_the_label_column_are_the_classes(
    tmp_path: Path, labels: Any, classes: list[str], numbers: list[int]
) -> None:
    examples = load(write(tmp_path / "x.parquet", IMAGES[:4], labels))
    assert (examples.classes, torch.as_tensor(examples.labels).tolist()) == (classes, numbers)


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_column_of_bytes_under_another_name_without_labels(tmp_path: Path, kind: Any) -> None:
    parquet.write_table(pyarrow.table({"img": pyarrow.array(IMAGES, kind)}), tmp_path / "x.parquet")
    examples = load(tmp_path / "x.parquet", "dataset.image_column=img", "dataset.label_column=null")
    assert torch.equal(examples.values, decoded(IMAGES))
    assert examples.labels is None


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_compressed_files(tmp_path: Path, compression: str) -> None:
    file = write(tmp_path / "x.parquet", IMAGES, [0] * 20, compression=compression)
    assert torch.equal(load(file).values, decoded(IMAGES))


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
        ("train-0.parquet", "train-1.parquet", "validation-0.parquet"),
    ],
)
def test_files_of_hugging_face_are_the_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, images in zip(names, (IMAGES[:7], IMAGES[7:15], IMAGES[15:]), strict=True):
        write(tmp_path / name, images, [len(images)] * len(images))
    train, test = load(tmp_path, "dataset.test_fraction=0.5"), load(tmp_path, train=False)
    assert torch.equal(train.values, decoded(IMAGES[:15]))
    assert torch.equal(test.values, decoded(IMAGES[15:]))
    assert (train.classes, test.classes) == (["7", "8"], ["7", "8", "5"])
    assert train.held_out == ["5"]
    assert train.counts == test.counts == "15 to train, 5 held out"


def test_rows_are_held_out_at_random_but_always_the_same(tmp_path: Path) -> None:
    for name, images in (("a.parquet", IMAGES[:12]), ("b.parquet", IMAGES[12:])):
        write(tmp_path / name, images, [IMAGES.index(content) for content in images])
    train, test = (load(tmp_path, "dataset.test_fraction=0.3", train=train) for train in (True, False))
    assert (len(train), len(test)) == (14, 6)
    for examples in (train, test):
        rows = [int(examples.classes[label]) for label in torch.as_tensor(examples.labels)]
        assert rows == sorted(rows)
        assert torch.equal(examples.values, decoded([IMAGES[row] for row in rows]))
    assert not {*map(repr, train.values.tolist())} & {*map(repr, test.values.tolist())}


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "x.parquet", IMAGES, [0] * 20)
    before = load(file).values
    with monkeypatch.context() as patched:
        patched.setattr("ddpm_cli.data.parquet.decode_image", None)  # would fail if called
        assert torch.equal(load(file).values, before)
    write(file, IMAGES[::-1], [0] * 20)
    assert torch.equal(load(file).values, before.flip(0))


def test_training_with_classes_and_evaluation(tmp_path: Path, run: Run) -> None:
    file = write(tmp_path / "x.parquet", IMAGES, [i % 2 for i in range(20)], ["ant", "bee"])
    typed = [*TINY[1:], "dataset=parquet", f"dataset.root={file}", "dataset.image_size=8", "conditioning=class"]
    result = run("train", *typed, "train.steps=2", "train.report=val_loss", "out=here")
    assert result.code == 0, result.err
    assert "parquet: 18 examples of 3x8x8" in Path("here/train.log").read_text()
    state = torch.load("here/checkpoints/last.pt", weights_only=True)
    assert (state["classes"], state["config"]["dataset"]["root"]) == (["ant", "bee"], None)
    assert run("evaluate", "ckpt=here", "metrics=[nll]", "n=2", "out=new").code == 0


def refused(root: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(root, *overrides)
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"dataset.root={root}: ")


def test_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "x.parquet", IMAGES, [0] * 20)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refused(file) == "dataset=parquet: needs pyarrow; pip install 'ddpm-cli[parquet]'"


def test_missing_files_and_columns(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == "no .parquet file; name one, or a folder that contains some"
    assert refused(tmp_path) == "no .parquet file; name one, or a folder that contains some"
    file = write(tmp_path / "x.parquet", IMAGES, [0] * 20)
    message = "dataset.image_column=img: must be one of the columns of x.parquet: image or label"
    assert refused(file, "dataset.image_column=img") == message
    message = "dataset.label_column=fine: must be one of the columns of x.parquet: image or label, or null"
    assert refused(file, "dataset.label_column=fine") == message
    assert refused(file, "dataset.image_column=label").startswith(
        "dataset.image_column=label: has values of type int64"
    )
    with pytest.raises(UserError, match="no rows for testing"):
        load(file, train=False)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2, 0], ["a", "b"], "row 2 of {}: label='2': must be in 0..1, the named classes"),
        ([0, -1, 2, 0], ["a", "b"], "row 1 of {}: label='-1': must be a whole number from 0 up"),
        ([0, None, 1, 0], None, "row 1 of {}: label='None': must be a whole number"),
        (["a", "b", None, "a"], None, "row 2 of {}: label='None': must be a whole number"),
        ([0.5, 1.0, 2.0, 0.0], None, "row 0 of {}: label='0.5': must be a whole number"),
        ([[0], [1], [2], [3]], None, "row 0 of {}: label='[0]': must be a whole number"),
        (["a", "b", "c", "a"], ["a", "b", "c"], "row 0 of {}: label='a': must be in 0..2, the named classes"),
    ],
)
def test_labels_out_of_range_are_named(tmp_path: Path, labels: list[Any], names: list[str], message: str) -> None:
    file = write(tmp_path / "x.parquet", IMAGES[:4], labels, names)
    assert refused(file).startswith(message.format(file))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.parquet", IMAGES, [0] * 20).read_bytes()
    for content in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole[:2000] + bytes(500) + whole[2500:]):
        (tmp_path / "x.parquet").write_bytes(content)
        message = refused(tmp_path / "x.parquet")
        assert "x.parquet cannot be read as Parquet" in message or "cannot be decoded" in message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["path", "bomb", "text", "EPS"])
def test_broken_image_is_refused_or_skipped(tmp_path: Path, kind: str) -> None:
    """An image that is only a path is not followed, and Pillow does not start Ghostscript for EPS."""
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, format="EPS")
    bomb = write_bomb(tmp_path / "bomb.png", 10_000, 9_000).read_bytes()
    bad = {"path": None, "bomb": bomb, "text": b"hello", "EPS": eps.getvalue()}[kind]
    file = write(tmp_path / "x.parquet", [*IMAGES[:7], bad, *IMAGES[7:]], list(range(21)))
    assert refused(file).startswith(f"row 7 of {file} cannot be decoded (")
    examples = load(file, "dataset.skip_broken=true")
    assert torch.equal(examples.values, decoded(IMAGES))
    assert torch.as_tensor(examples.labels).tolist() == [*range(7), *range(8, 21)]
    assert examples.counts == "20 to train, 0 held out, 1 skipped"


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    """A few bytes may stand for any number of equal rows."""
    file = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"image": pyarrow.array([b""] * 10**5), "label": [0] * 10**5}), file)
    assert f"cannot be read as Parquet (ValueError: 100000 rows in {file.stat().st_size} bytes)" in refused(file)


def test_large_value_of_many_rows_is_read_once_at_a_time(tmp_path: Path) -> None:
    """Forty rows of 8 MiB in each column, in a file of a few kilobytes."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 40), ["x" * 2**23])
    table = pyarrow.table(
        {"image": column.cast(pyarrow.dictionary(pyarrow.int64(), pyarrow.binary())), "label": column}
    )
    file = tmp_path / "x.parquet"
    parquet.write_table(table, file, store_schema=False, dictionary_pagesize_limit=2**28, compression="zstd")
    assert 300 < file.stat().st_size < 20_000
    before = pyarrow.default_memory_pool().max_memory()
    assert "cannot be decoded (ValueError: not an image" in refused(tmp_path / "x.parquet")
    assert pyarrow.default_memory_pool().max_memory() < before + 2**27


def test_links_out_of_the_root_need_follow_links(tmp_path: Path) -> None:
    file = write(tmp_path / "away" / "x.parquet", IMAGES, [0] * 20)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.parquet").symlink_to(file)
    assert "link.parquet is a symbolic link to a target outside it" in refused(tmp_path / "root")
    assert len(load(tmp_path / "root", "dataset.follow_links=true")) == 20


def test_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.parquet")
    assert "x.parquet cannot be read as Parquet (OSError: not a file)" in refused(tmp_path)
