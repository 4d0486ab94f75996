"""Each source on files that the test writes in the source's own format."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from ddpm_cli.data import sources
from ddpm_cli.data.sources import load_examples, moved
from ddpm_cli.errors import UserError
from ddpm_cli.options import SwissRoll
from tests.conftest import composed


def write_idx(folder: Path, count: int, gzipped: bool) -> None:
    """Train and test files like Fashion-MNIST's; image i is filled with i, label i % 10."""
    folder.mkdir(parents=True)
    for prefix, first in [("train", 0), ("t10k", 100)]:
        values = np.arange(first, first + count, dtype=np.uint8)
        pixels = np.repeat(values, 28 * 28).tobytes()
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + pixels,
            f"{prefix}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + (values % 10).tobytes(),
        }
        for name, content in files.items():
            if gzipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive like CIFAR-10's, 4 images a file, whose checksums torchvision is told."""
    import hashlib

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch() -> dict:
        return {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    train = [write(f"data_batch_{i}", batch()) for i in range(1, 6)]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(tv.CIFAR10, "train_list", train)
    monkeypatch.setattr(tv.CIFAR10, "test_list", [write("test_batch", batch())])
    monkeypatch.setattr(tv.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})


@pytest.fixture
def no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "not-installed")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Error downloading")

    for source in (tv.MNIST, tv.FashionMNIST, tv.CIFAR10):
        monkeypatch.setattr(source, "download", refuse)


@pytest.mark.parametrize("layout", ["flat", "gzipped", "torchvision"])
def test_fashion_mnist_from_a_root(tmp_path: Path, layout: str, no_debian: None, no_network: None) -> None:
    inner = "FashionMNIST/raw" if layout == "torchvision" else ""
    write_idx(tmp_path / "data" / inner, 5, layout == "gzipped")
    dataset = composed(f"dataset.root={tmp_path / 'data'}").dataset
    train, test = load_examples(dataset, train=True), load_examples(dataset, train=False)
    assert train.values.shape == (5, 1, 28, 28)
    assert train.values.dtype == torch.uint8
    assert train.values[:, 0, 3, 3].tolist() == [0, 1, 2, 3, 4]
    assert test.values[:, 0, 3, 3].tolist() == [100, 101, 102, 103, 104]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3, 4]
    assert train.classes[1] == "Trouser"


def test_fashion_mnist_from_debians_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    write_idx(tmp_path / "debian", 3, gzipped=True)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    assert len(load_examples(composed().dataset, train=True)) == 3


def test_where_nothing_works_the_three_ways_are_named(no_debian: None, no_network: None) -> None:
    with pytest.raises(UserError) as caught:
        load_examples(composed().dataset, train=True)
    for way in ("dataset.root=null", "apt-get install dataset-fashion-mnist", "download", "dataset=digits"):
        assert way in str(caught.value)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", 5, gzipped=True)
    file = tmp_path / "data" / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        load_examples(composed(f"dataset.root={tmp_path / 'data'}").dataset, train=True)


def test_cifar10_by_torchvisions_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    dataset = composed("dataset=cifar10", f"dataset.root={tmp_path}").dataset
    train, test = load_examples(dataset, train=True), load_examples(dataset, train=False)
    assert train.values.shape == (20, 3, 32, 32)
    assert len(test) == 4
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3] * 5
    assert train.classes[3] == "cat"
    stored = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes())["data"]
    assert torch.equal(train.values[0].flatten(), torch.from_numpy(stored[0]))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_says_what_to_do(name: str, no_network: None) -> None:
    with pytest.raises(UserError, match=rf"dataset={name}.*dataset\.root=…"):
        load_examples(composed(f"dataset={name}").dataset, train=True)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_root_without_the_data_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"dataset\.root={tmp_path}"):
        load_examples(composed(f"dataset={name}", f"dataset.root={tmp_path}").dataset, train=True)


def test_downloads_go_to_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_debian: None) -> None:
    roots: list[Path] = []

    def note(self: tv.MNIST) -> None:
        roots.append(Path(self.root))
        raise RuntimeError

    monkeypatch.setattr(tv.FashionMNIST, "download", note)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "mine"))
    with pytest.raises(UserError):
        load_examples(composed().dataset, train=True)
    monkeypatch.delenv("DDPM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError):
        load_examples(composed().dataset, train=True)
    assert roots == [tmp_path / "mine", tmp_path / "home" / ".cache" / "ddpm_cli"]


def test_digits_are_split_and_whole() -> None:
    dataset = composed("dataset=digits").dataset
    train, test = load_examples(dataset, train=True), load_examples(dataset, train=False)
    assert (len(train), len(test)) == (1500, 297)
    together = torch.cat([train.values, test.values]).flatten(1)
    assert (together.min(), together.max()) == (0, 255)
    from sklearn.datasets import load_digits

    original = torch.tensor(load_digits().images * (255 / 16)).round().byte().flatten(1)
    assert sorted(together.tolist()) == sorted(original.tolist())  # a partition: none lost, none in both


def test_sizes_and_channels_are_made_to_fit() -> None:
    plain = load_examples(composed("dataset=digits").dataset, train=True)
    colour = load_examples(composed("dataset=digits", "dataset.channels=3").dataset, train=True)
    assert torch.equal(colour.values, plain.values.repeat(1, 3, 1, 1))
    tall = load_examples(composed("dataset=digits", "dataset.image_size=[16,8]").dataset, train=True)
    assert tall.values.shape == (1500, 1, 16, 8)
    large = load_examples(composed("dataset=digits", "dataset.image_size=16").dataset, train=True)
    assert large.values.float().mean() == pytest.approx(plain.values.float().mean().item(), rel=0.02)


def test_colour_becomes_gray_by_luma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    dataset = composed("dataset=cifar10", f"dataset.root={tmp_path}", "dataset.channels=1").dataset
    colour = composed("dataset=cifar10", f"dataset.root={tmp_path}").dataset
    gray, rgb = load_examples(dataset, train=True).values, load_examples(colour, train=True).values.float()
    expected = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    assert (gray[:, 0].float() - expected).abs().max() <= 0.51


def test_data_that_have_moved() -> None:
    digits = composed("dataset=digits").dataset
    assert moved(digits, None) == digits
    assert moved(digits, "/elsewhere").root == "/elsewhere"
    with pytest.raises(UserError, match="root=/elsewhere: dataset=swiss_roll is read from no folder"):
        moved(SwissRoll(points=3, noise=0.5), "/elsewhere")
