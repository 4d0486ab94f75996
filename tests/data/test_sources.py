"""Test each source on files that the tests write in its format."""

import gzip
import hashlib
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from ddpm_cli.config import SwissRoll
from ddpm_cli.data import sources
from ddpm_cli.data.sources import load_examples, moved
from ddpm_cli.errors import UserError
from tests.conftest import composed


def write_idx(folder: Path, count: int, gzipped: bool) -> None:
    """Write train and test files in the format of Fashion-MNIST. Image i has pixels of value i and the label i % 10."""
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
    """Write files in the format of CIFAR-10 with 4 images each, and set their checksums in torchvision."""
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


def test_fashion_mnist_from_the_debian_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    write_idx(tmp_path / "debian", 3, gzipped=True)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    assert len(load_examples(composed().dataset, train=True)) == 3


def test_missing_fashion_mnist_error_names_all_sources(no_debian: None, no_network: None) -> None:
    with pytest.raises(UserError) as caught:
        load_examples(composed().dataset, train=True)
    for way in ("dataset.root", "apt-get install dataset-fashion-mnist", "download", "dataset=digits"):
        assert way in str(caught.value)


def test_damaged_idx_files_are_rejected(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", 5, gzipped=True)
    file = tmp_path / "data" / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        load_examples(composed(f"dataset.root={tmp_path / 'data'}").dataset, train=True)


def test_cifar10_from_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_failed_download_error_names_a_solution(name: str, no_network: None) -> None:
    with pytest.raises(UserError, match=rf"dataset={name}.*dataset\.root=…"):
        load_examples(composed(f"dataset={name}").dataset, train=True)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_root_without_the_data_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"dataset\.root={tmp_path}"):
        load_examples(composed(f"dataset={name}", f"dataset.root={tmp_path}").dataset, train=True)


def test_downloads_go_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_debian: None) -> None:
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


def test_digits_are_partitioned() -> None:
    dataset = composed("dataset=digits").dataset
    train, test = load_examples(dataset, train=True), load_examples(dataset, train=False)
    assert (len(train), len(test)) == (1500, 297)
    together = torch.cat([train.values, test.values]).flatten(1)
    assert (together.min(), together.max()) == (0, 255)
    from sklearn.datasets import load_digits

    data = load_digits()
    original = torch.tensor(data.images * (255 / 16)).round().byte().flatten(1)
    labels = torch.cat([train.labels, test.labels])
    ours, theirs = (
        zip(together.tolist(), labels.tolist(), strict=True),
        zip(original.tolist(), data.target, strict=True),
    )
    assert sorted(ours) == sorted(theirs)  # a partition: each image is in one split


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="dataset=digits: needs scikit-learn; pip install 'ddpm-cli"):
        load_examples(composed("dataset=digits").dataset, train=True)


def test_images_are_converted_to_size_and_channels() -> None:
    plain = load_examples(composed("dataset=digits").dataset, train=True)
    colour = load_examples(composed("dataset=digits", "dataset.channels=3").dataset, train=True)
    assert torch.equal(colour.values, plain.values.repeat(1, 3, 1, 1))
    tall = load_examples(composed("dataset=digits", "dataset.image_size=[16,8]").dataset, train=True)
    assert tall.values.shape == (1500, 1, 16, 8)
    large = load_examples(composed("dataset=digits", "dataset.image_size=16").dataset, train=True)
    assert large.values.float().mean() == pytest.approx(plain.values.float().mean().item(), rel=0.02)


def test_gray_is_the_luma_of_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    dataset = composed("dataset=cifar10", f"dataset.root={tmp_path}", "dataset.channels=1").dataset
    colour = composed("dataset=cifar10", f"dataset.root={tmp_path}").dataset
    gray, rgb = load_examples(dataset, train=True).values, load_examples(colour, train=True).values.float()
    expected = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    assert (gray[:, 0].float() - expected).abs().max() <= 0.51


def test_moved_replaces_the_root() -> None:
    digits = composed("dataset=digits").dataset
    assert moved(digits, None) == digits
    assert moved(digits, "/elsewhere").root == "/elsewhere"
    with pytest.raises(UserError, match="root=/elsewhere: dataset=swiss_roll is not read from a folder"):
        moved(SwissRoll(points=3, noise=0.5), "/elsewhere")


class Web(NamedTuple):
    """A local web server: its address, the folder that it serves, and the names of the requested files."""

    address: str
    folder: Path
    requested: set[str]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    folder, requested = tmp_path / "served", set[str]()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            requested.add(self.path.removeprefix("/"))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore closed connections: torchvision first requests each file only to follow redirects."""

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Web(f"http://127.0.0.1:{server.server_port}/", folder, requested)
        server.shutdown()


class Download(NamedTuple):
    """A dataset that `web` serves: its name, and the paths of its first archive and file relative to the cache."""

    name: str
    archive: str
    unpacked: str

    def load(self) -> torch.Tensor:
        return load_examples(composed(f"dataset={self.name}").dataset, train=True).values


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture(params=["mnist", "fashion_mnist", "cifar10"])
def download(
    request: pytest.FixtureRequest, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_debian: None
) -> Download:
    """Serve a few images in the format of a dataset, and set their checksums in torchvision."""
    if request.param == "cifar10":
        write_cifar10(tmp_path / "made", monkeypatch)
        web.folder.mkdir()
        archive = web.folder / tv.CIFAR10.filename
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
        monkeypatch.setattr(tv.CIFAR10, "url", web.address + archive.name)
        monkeypatch.setattr(tv.CIFAR10, "tgz_md5", md5(archive))
        return Download("cifar10", archive.name, "cifar-10-batches-py/data_batch_1")
    kind = tv.MNIST if request.param == "mnist" else tv.FashionMNIST
    write_idx(web.folder, 5, gzipped=True)
    monkeypatch.setattr(kind, "mirrors", [web.address])
    monkeypatch.setattr(kind, "resources", [(file.name, md5(file)) for file in sorted(web.folder.iterdir())[::-1]])
    raw = f"{kind.__name__}/raw"
    return Download(request.param, f"{raw}/train-images-idx3-ubyte.gz", f"{raw}/train-images-idx3-ubyte")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_torchvision_has_checksums_of_all_files() -> None:
    """All downloads are verified with these."""
    checksums = [checksum for kind in (tv.MNIST, tv.FashionMNIST) for _, checksum in kind.resources]
    checksums += [tv.CIFAR10.tgz_md5, *(checksum for _, checksum in tv.CIFAR10.train_list + tv.CIFAR10.test_list)]
    assert len(checksums) == 15
    assert all(len(checksum) == 32 for checksum in checksums)


def test_download_is_cached(download: Download, web: Web) -> None:
    first = download.load()
    assert (sources.cache_folder() / download.archive).is_file()
    assert web.requested == {file.name for file in web.folder.iterdir()}
    web.requested.clear()
    assert torch.equal(download.load(), first)
    assert not web.requested


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("unpacked", [True, False])
def test_damaged_archive_in_the_cache_is_not_used(download: Download, web: Web, damage: Any, unpacked: bool) -> None:
    """Such archives can result from an interrupted download."""
    first, cache = download.load(), sources.cache_folder()
    web.requested.clear()
    damage(cache / download.archive)
    if not unpacked:
        (cache / download.unpacked).unlink()
    assert torch.equal(download.load(), first)
    still_valid = unpacked and download.name == "cifar10"  # its unpacked files have checksums
    assert web.requested == (set() if still_valid else {Path(download.archive).name})
    assert still_valid or md5(cache / download.archive) == md5(web.folder / Path(download.archive).name)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_unpacked_file_is_not_used(download: Download, web: Web, damage: Any) -> None:
    first = download.load()
    web.requested.clear()
    damage(sources.cache_folder() / download.unpacked)
    assert torch.equal(download.load(), first)
    assert not web.requested  # the archive is in the cache


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damaged_download_is_not_used(download: Download, web: Web, damage: Any) -> None:
    served = web.folder / Path(download.archive).name
    original = served.read_bytes()
    damage(served)
    for _ in range(2):
        with pytest.raises(UserError, match="download") as caught:
            download.load()
        assert "\n" not in str(caught.value)
        assert not (sources.cache_folder() / download.unpacked).exists()
    served.write_bytes(original)
    assert len(download.load()) in (5, 20)
