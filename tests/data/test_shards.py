import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.data.decoding import decode_image
from ddpm_cli.data.sources import load_examples, open_examples
from ddpm_cli.data.stream import batches_of
from ddpm_cli.data.table import chosen
from ddpm_cli.errors import Failure, UserError
from tests.conftest import composed
from tests.data.shards import COLUMNS, noise_png, opened, write_folder
from tests.data.test_image_folder import write_bomb

CPU = torch.device("cpu")
IMAGES = [noise_png(i) for i in range(7)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "shards", IMAGES)


def test_images_and_labels_are_those_of_the_tar_files(root: Path) -> None:
    examples = opened(root)
    assert len(examples) == 7
    for i, content in enumerate(IMAGES):
        assert np.array_equal(examples.read(i), decode_image(content, 8, 8, 3))
    assert examples.labels is not None
    assert examples.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert (examples.classes, examples.source) == (["a", "b"], str(root))
    assert examples.counts == "7 to train, 2 held out"
    assert len(opened(root, train=False)) == 2


def test_batches_are_those_of_an_image_folder(root: Path, tmp_path: Path) -> None:
    """The same images in a folder, in the same order, give the same bits."""
    for i, content in enumerate(IMAGES):
        file = tmp_path / "folder" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    by_class = sorted(range(7), key=lambda i: (i % 2, i))
    ordered = write_folder(tmp_path / "ordered", [IMAGES[i] for i in by_class])
    typed = ["dataset=image_folder", f"dataset.root={tmp_path}/folder", "dataset.image_size=8"]
    folder = open_examples(composed(*typed, "dataset.test_fraction=0").dataset, True)
    table, stream = (batches_of(examples, True, 5, CPU) for examples in (folder, opened(ordered)))
    for step in range(6):
        assert torch.equal(table.batch(step, 4).x0, stream.batch(step, 4).x0)


def test_unlabelled_images(tmp_path: Path) -> None:
    examples = opened(write_folder(tmp_path / "shards", IMAGES, classes=()))
    assert (examples.labels, examples.classes) == (None, [])


def test_fingerprint_is_that_of_the_index(root: Path, tmp_path: Path) -> None:
    before = opened(root).fingerprint
    moved = root.rename(tmp_path / "moved")
    assert opened(moved).fingerprint == before
    for tar in moved.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))  # not read, so that a start takes as long as reading the index
    assert opened(moved).fingerprint == before
    changed = write_folder(tmp_path / "changed", [noise_png(99), *IMAGES[1:]])
    assert opened(changed).fingerprint != before
    renamed = write_folder(tmp_path / "renamed", IMAGES, classes=("a", "c"))
    assert opened(renamed).fingerprint != before


def test_table_of_all_images_is_decoded_once(root: Path) -> None:
    dataset = composed("dataset=shards", f"dataset.root={root}", "dataset.image_size=8").dataset
    examples = load_examples(dataset, train=True)
    assert np.array_equal(examples.values.numpy(), [decode_image(content, 8, 8, 3) for content in IMAGES])
    few, numbers = load_examples(dataset, train=True, n=3), chosen(len(IMAGES), 3)
    assert torch.equal(few.values, examples.values[numbers])
    assert few.labels is not None
    assert few.labels.tolist() == [number % 2 for number in numbers.tolist()]
    for tar in root.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    assert torch.equal(load_examples(dataset, train=True).values, examples.values)


def test_table_that_does_not_fit_on_the_disk_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(UserError, match=r"DDPM_CACHE=.*: cannot store 1\.3 KiB of decoded images \(the disk is full\)"):
        load_examples(composed("dataset=shards", f"dataset.root={root}", "dataset.image_size=8").dataset, train=True)


def refused(root: Path) -> str:
    """Return the message for shards that are refused when they are opened."""
    with pytest.raises(UserError) as caught:
        opened(root)
    message = str(caught.value)
    assert message.startswith(f"dataset.root={root}: ")
    assert message.isprintable()
    return message.removeprefix(f"dataset.root={root}: ")


def test_missing_files_are_named(root: Path) -> None:
    for name in ("train-00001.tsv", "train-00001.tar"):
        (root / name).unlink()
        assert refused(root).startswith(f"{name}: is missing; ")
    (root / "shards.json").unlink()
    assert refused(root).startswith("has no shards.json; ")
    shutil.rmtree(root)
    assert refused(root).startswith("no such folder; ")


def test_root_is_required() -> None:
    with pytest.raises(UserError, match=r"dataset.root=null: must be a folder that ddpm-import"):
        open_examples(composed("dataset=shards").dataset, True)


def test_truncated_shard_is_named(root: Path) -> None:
    tar = root / "train-00002.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert refused(root) == "train-00002.tar: has 10239 bytes instead of 10240; restore this shard"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("name", ["train-00000.tar", "train-00000.tsv", "shards.json"])
def test_only_regular_files_are_read(root: Path, name: str, make: object) -> None:
    (root / name).rename(root / "away")
    make(root / name)  # type: ignore[operator]
    assert refused(root).startswith(f"{name}: is not a regular file")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"classes": "ab"},
        {"classes": [1]},
        {"train": {}},
        {"train": [1]},
        {"train": [{"file": "../away.tar", "bytes": 10240, "images": 1}]},
        {"train": [{"file": "/etc/passwd.tar", "bytes": 10240, "images": 1}]},
        {"train": [{"file": "train-00000.tsv", "bytes": 10240, "images": 1}]},
        {"train": [{"file": "train-00000.tar", "bytes": 10240, "images": 0}]},
        {"train": [{"file": "train-00000.tar", "bytes": 10240, "images": 10**30}]},
        {"train": [{"file": "train-00000.tar", "bytes": "10240", "images": 1}]},
    ],
)
def test_invalid_list_of_shards_is_refused(root: Path, changes: dict[str, object]) -> None:
    manifest = json.loads((root / "shards.json").read_text())
    (root / "shards.json").write_text(json.dumps(manifest | changes))
    assert refused(root).startswith(("shards.json: is not what", "shards.json: has no images"))


def test_list_of_shards_that_is_no_json(root: Path) -> None:
    for content in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1' + b"0" * 10_000 + b"}"):
        (root / "shards.json").write_bytes(content)
        assert refused(root).startswith("shards.json: is not what")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x\t512\t100\t2\t0", "line 2: label=2: must be in 0..1, the classes of shards.json"),
        ("x\t512\t100\t-1\t0", "line 2: label=-1: must be in 0..1"),
        ("x\t512\t0\t0\t0", "line 2: size=0: must be in 1..268435456"),
        ("x\t512\t-5\t0\t0", "line 2: size=-5: must be"),
        ("x\t0\t268435457\t0\t0", "line 2: size=268435457: must be"),
        ("x\t-1\t100\t0\t0", "line 2: offset=-1: must be within the 10240 bytes of the shard"),
        ("x\t10200\t41\t0\t0", "line 2: offset=10200: must be within"),
        ("x\t9223372036854775807\t100\t0\t0", "line 2: offset=9223372036854775807: must be within"),
        ("x\t512\t100\t0\t4294967296", "line 2: crc32=4294967296: must be"),
        ("x\t512\t100\t0\t99999999999999999999", "has a line without four numbers"),
        ("x\t512\t100\t0", "has a line without four numbers"),
        ("x\t512\t1e2\t0\t0", "has a line without four numbers"),
        ("", "has a line without four numbers"),
        ("x\t512\t100\t0\t0\nx\t512\t100\t0\t0", "is not the index of 1 images"),
    ],
)
def test_invalid_index_is_refused(tmp_path: Path, row: str, message: str) -> None:
    root = write_folder(tmp_path / "shards", IMAGES[:2], shards=2)
    (root / "train-00001.tsv").write_text(f"{COLUMNS}\n{row}\n")
    assert refused(root).startswith(f"train-00001.tsv: {message}")


def test_index_larger_than_its_shard_is_not_read(root: Path) -> None:
    (root / "train-00000.tsv").write_bytes(bytes(20_000))
    assert refused(root).startswith("train-00000.tsv: has more than 10240 bytes")


def test_damaged_image_is_named(root: Path) -> None:
    examples = opened(root)
    tar = root / "train-00001.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(IMAGES[3]) + 100] ^= 1
    tar.write_bytes(content)
    with pytest.raises(Failure) as caught:
        examples.read(3)
    message = f"{tar}: the image of line 3 of train-00001.tsv cannot be read (ValueError: its content is not what the"
    assert str(caught.value).startswith(message)
    for i in (2, 4):
        assert np.array_equal(examples.read(i), decode_image(IMAGES[i], 8, 8, 3))


def test_shard_that_disappears_is_named(root: Path) -> None:
    examples = opened(root)
    (root / "train-00000.tar").unlink()
    with pytest.raises(Failure, match=r"train-00000\.tar: the image of line 2 .*No such file"):
        examples.read(0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    bomb = write_bomb(tmp_path / "bomb.png", 10_000, 9_000).read_bytes()
    examples = opened(write_folder(tmp_path / "shards", [*IMAGES, bomb]))
    with pytest.raises(Failure, match=r"line 4 of train-00002\.tsv .*10000x9000 exceeds 89478485 pixels"):
        examples.read(7)


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_other_formats_are_not_tried(tmp_path: Path, kind: str) -> None:
    """Pillow starts Ghostscript for EPS."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format=kind)
    examples = opened(write_folder(tmp_path / "shards", [buffer.getvalue()] * 3))
    with pytest.raises(Failure, match="not an image of the formats PNG JPEG WEBP BMP GIF TIFF"):
        examples.read(0)


def test_more_shards_than_are_kept_open(tmp_path: Path) -> None:
    images = [noise_png(i, (8, 8)) for i in range(70)]
    stream = batches_of(opened(write_folder(tmp_path / "shards", images, shards=70)), False, 0, CPU)
    seen = torch.cat([stream.batch(step, 35).x0 for step in range(2)])
    expected = torch.stack([torch.from_numpy(decode_image(one, 8, 8, 3).copy()) for one in images])
    assert torch.equal(((seen + 1) * 127.5).round().byte().sum(0), expected.sum(0))
