import errno
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_cli.data import shard_writer
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples
from tests.conftest import Result, composed
from tests.data.shards import noise_png, opened
from tests.data.test_image_folder import BOMB_SIZES, write_bomb

Run = Callable[..., Result]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for i in range(20):
        file = root / "ab"[i % 2] / "deeper" / f"{i}.PNG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise_png(i))
    return root


def imported(run: Run, pictures: Path, *overrides: str, out: str = "shards") -> Path:
    result = run("import", "format=shards", f"path={pictures}", f"out={out}", *overrides)
    assert result.code == 0, result.err
    return Path(out)


def folder_examples(root: Path, train: bool, *overrides: str) -> Examples:
    typed = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", *overrides]
    return load_examples(composed(*typed).dataset, train)


@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_images_labels_and_splits_are_those_of_the_folder(pictures: Path, run: Run, fraction: float) -> None:
    shards = imported(run, pictures, *([] if fraction == 0.1 else [f"test_fraction={fraction}"]))
    for train in (True, False):
        folder = folder_examples(pictures, train, f"dataset.test_fraction={fraction}")
        examples = opened(shards, train=train)
        assert (len(examples), examples.classes, examples.counts) == (len(folder), folder.classes, folder.counts)
        assert torch.equal(torch.as_tensor(examples.labels), torch.as_tensor(folder.labels))
        for i in range(len(folder)):
            assert torch.equal(torch.from_numpy(examples.read(i)), folder.values[i])


def test_several_shards_have_the_same_images_as_one(pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(imported(run, pictures, out="one"))
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 5000)
    several = imported(run, pictures, out="several")
    assert len(list(several.glob("train-*.tar"))) == 6  # of three images, 2048 bytes each
    examples = opened(several)
    assert torch.equal(torch.as_tensor(one.labels), torch.as_tensor(examples.labels))
    for i in range(len(one)):
        assert (one.read(i) == examples.read(i)).all()


def test_tar_files_have_the_layout_of_webdataset(pictures: Path, run: Run) -> None:
    """Read by tarfile, which knows nothing of the index: number.png has the file's bytes, number.cls its label."""
    members: dict[str, bytes] = {}
    for path in sorted(imported(run, pictures).glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(members)[:4] == ["000000000.png", "000000000.cls", "000000001.png", "000000001.cls"]
    originals = {file.read_bytes(): b"01"["ab".index(file.parts[-3]) :][:1] for file in pictures.rglob("*.PNG")}
    images = [content for name, content in members.items() if name.endswith("png")]
    assert len(set(images)) == 18
    for name, content in members.items():
        if name.endswith("png"):
            assert members[name.replace("png", "cls")] == originals[content]


def test_bytes_depend_only_on_the_images(pictures: Path, run: Run, tmp_path: Path) -> None:
    first = imported(run, pictures, out="first")
    moved = pictures.rename(tmp_path / "moved")
    for file in moved.rglob("*.PNG"):
        os.utime(file, (1e9, 1e9))
    second = imported(run, moved, out="second")
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize(("file", "named"), [("test/eels/0.png", "eels"), ("test/0.png", "no class")])
def test_class_that_train_lacks_is_refused(file: str, named: str, tmp_path: Path, run: Run) -> None:
    for i, name in enumerate(("train/cats/0.png", "train/dogs/0.png", "test/dogs/0.png", file)):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(noise_png(i))
    result = run("import", "format=shards", "path=pictures", "out=shards")
    assert (result.code, result.err) == (
        2,
        f"ddpm-import: path=pictures: test/ has images of {named}, and train/ has cats, dogs; move some to train/, or "
        "remove them\n",
    )
    assert not Path("shards").exists()


def test_images_without_folders_have_no_labels(tmp_path: Path, run: Run) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(noise_png(i))
    shards = imported(run, tmp_path / "pictures", "test_fraction=0")
    assert opened(shards).labels is None
    assert not list(shards.glob("test*"))
    with tarfile.open(shards / "train-00000.tar") as tar:
        assert tar.getnames() == [f"{i:09}.png" for i in range(3)]


def refused(run: Run, *overrides: str) -> str:
    result = run("import", *overrides)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    return result.err.removeprefix("ddpm-import: ")


@pytest.mark.parametrize("size", BOMB_SIZES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_image_leaves_nothing_or_is_skipped(pictures: Path, run: Run, size: tuple[int, int]) -> None:
    bomb = write_bomb(pictures / "b" / "bomb.png", *size)
    message = refused(run, "format=shards", f"path={pictures}", "out=new", "test_fraction=0")
    assert message.startswith(f"path={pictures}: {bomb} cannot be decoded (DecompressionBombError: ")
    assert message.endswith("; remove it, or skip broken images with skip_broken=true\n")
    assert list(Path("new").iterdir()) == []
    shards = imported(run, pictures, "skip_broken=true", "test_fraction=0", out="new")
    assert len(opened(shards)) == 20


def test_full_disk_leaves_nothing(pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer, "_add", fail)
    result = run("import", "format=shards", f"path={pictures}", "out=new")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "train-00000.tar: no room on the disk for this file" in result.err
    assert list(Path("new").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=shards", "path=nowhere"], "path=nowhere: no such folder; name a folder of images"),
        (["path=nowhere"], "path=nowhere: no such folder; name the folder of a DDPMPipeline"),
        (["format=shards", "path=empty"], "path=empty: no images for training"),
        (["format=shards", "path=empty", "dataset=digits"], "dataset=digits: has no effect with format=shards"),
        (["format=shards", "path=empty", "test_fraction=1"], "test_fraction=1.0: must be in [0, 1), or null"),
        (["path=empty", "test_fraction=0.5"], "test_fraction=0.5: only with format=shards"),
        (["path=empty", "skip_broken=true"], "skip_broken=True: only with format=shards"),
    ],
)
def test_invalid_overrides(run: Run, tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(run, *overrides).startswith(message)


def test_link_out_of_the_folder_is_refused(pictures: Path, run: Run) -> None:
    (pictures / "a" / "link.png").symlink_to("/etc/passwd")
    message = refused(run, "format=shards", f"path={pictures}", "out=new")
    assert message.startswith(f"path={pictures}: {pictures}/a/link.png is a symbolic link")
    assert "with follow_links=true" in message
    assert not Path("new").exists()
