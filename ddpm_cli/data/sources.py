"""Load a dataset as `Examples` with the size and the channels of its config."""

import hashlib
import math
import tempfile
import zlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.config import (
    Cifar10,
    Dataset,
    Digits,
    Emoji,
    FashionMnist,
    ImageDataset,
    ImageFolder,
    Mnist,
    Parquet,
    Shards,
    SwissRoll,
    UserImages,
    implementation_of,
    implements,
)
from ddpm_cli.data.decoding import DECODER, Undecoded, cached_table
from ddpm_cli.data.emoji import read_emoji
from ddpm_cli.data.image_folder import read_image_folder
from ddpm_cli.data.parquet import read_parquet
from ddpm_cli.data.shards import read_shards
from ddpm_cli.data.table import Examples, StreamedExamples, chosen, to_tensor
from ddpm_cli.errors import UserError, first_of
from ddpm_cli.files import cache_folder
from ddpm_cli.images.resizing import convert_channels, resize_and_crop

AnyDataset = TypeVar("AnyDataset", bound=Dataset)

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the Debian package dataset-fashion-mnist."""
DIGITS_IN_TRAIN = 1500
"""Number of digits in the train split."""
FEW = 2048
"""Number of streamed images that are decoded in memory, without a table of all."""
READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, AssertionError, IndexError, KeyError, TypeError, zlib.error)
"""Exceptions that torchvision raises for missing or damaged files and failed downloads."""


def open_examples(dataset: Dataset, train: bool) -> Examples | StreamedExamples:
    """Return the train split or the test split for training, which streams images that may not fit in memory.

    Images are converted to `dataset.channels` and resized to `dataset.image_size`. Raises `UserError` if the data are
    missing or damaged and cannot be downloaded.
    """
    examples: Examples | StreamedExamples = implementation_of(dataset)(dataset, train)
    if isinstance(examples, StreamedExamples) or not isinstance(dataset, ImageDataset):
        return examples
    if examples.values.shape[1:] == dataset.shape:
        return examples
    values = resize_and_crop(convert_channels(examples.values, dataset.channels), dataset)
    return replace(examples, values=values, fingerprint="")


def load_examples(dataset: Dataset, train: bool, n: int | None = None) -> Examples:
    """Return the train split or the test split as one table, or only the n examples that `chosen` names.

    Images that are streamed in training are decoded once into a memory-mapped table in the cache. For a few, only these
    are decoded, in memory. Raises `UserError` as `open_examples` does, or if the disk has no room for the table.
    """
    examples = open_examples(dataset, train)
    numbers = None if n is None else chosen(len(examples), n)
    if isinstance(examples, StreamedExamples):
        assert isinstance(dataset, ImageDataset)
        values = _decoded(examples, dataset, numbers)
    else:
        values = examples.values if numbers is None else examples.values[numbers]
    labels = examples.labels if examples.labels is None or numbers is None else examples.labels[numbers]
    kept = examples.fingerprint if isinstance(examples, Examples) and n is None else ""
    return Examples(values, labels, examples.classes, examples.source, examples.counts, kept, examples.held_out)


def _decoded(examples: StreamedExamples, dataset: ImageDataset, numbers: Tensor | None) -> Tensor:
    """Return the images of streamed `examples` with these numbers, or all, (N, C, H, W) uint8."""
    if numbers is not None and len(numbers) <= FEW:
        return torch.from_numpy(np.stack([examples.read(i) for i in numbers.tolist()]))
    key = hashlib.sha256(repr((DECODER, examples.fingerprint, dataset.shape)).encode()).hexdigest()[:32]
    every = range(len(examples))
    images = Undecoded(key, len(every), lambda: every, examples.read, str, skip_broken=False)
    pixels = torch.from_numpy(cached_table(dataset.root, images, dataset.shape, cache_folder() / dataset.name)[0])
    return pixels if numbers is None else pixels[numbers]


def moved(dataset: AnyDataset, root: str | None) -> AnyDataset:
    """Return `dataset` with its root replaced by `root`, unless `root` is None.

    Raises `UserError` if `dataset` has no root.
    """
    if root is None:
        return dataset
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"root={root}: dataset={dataset.name} is not read from a folder; leave root out")
    return replace(dataset, root=root)


def check_labels(dataset: Dataset, examples: Examples | StreamedExamples) -> None:
    """Raise `UserError` if the examples of `dataset` have no labels."""
    if examples.labels is None:
        hint = f" ({dataset.no_labels})" if isinstance(dataset, UserImages) else ""
        raise UserError(f"conditioning=class: dataset={dataset.name} has no labels{hint}; use conditioning=none")


def check_trained(dataset: Dataset, examples: Examples | StreamedExamples) -> None:
    """Raise `UserError` if the test split has images of a class of which `examples`, the train split, has none."""
    if examples.held_out:
        key = f"dataset.root={dataset.root}" if isinstance(dataset, UserImages) else f"dataset={dataset.name}"
        raise UserError(
            f"{key}: the train split has no images of {first_of(examples.held_out)}, and the test split does; train on "
            "some, remove these, or use conditioning=none"
        )


@implements(FashionMnist)
def _fashion_mnist(dataset: ImageDataset, train: bool) -> Examples:
    """Load Fashion-MNIST from `dataset.root`; if this is None, from the Debian package, or download it.

    Folders may have the layout of torchvision or contain idx files.
    """
    folder = DEBIAN_FASHION_MNIST if dataset.root is None else Path(dataset.root).expanduser()
    try:
        if (folder / "FashionMNIST" / "raw").is_dir():
            return _read_torchvision("FashionMNIST", folder, train)
        if any(folder.glob("train-images-idx3-ubyte*")):
            return _read_idx_files("FashionMNIST", folder, train)
    except READ_ERRORS as error:
        raise UserError(
            f"dataset.root={folder}: the files of Fashion-MNIST are damaged; download them again, or name another "
            "folder"
        ) from error
    if dataset.root is not None:
        raise UserError(
            f"dataset.root={dataset.root}: Fashion-MNIST is not there; did you mean dataset=image_folder, for your own "
            "pictures? Without dataset.root it is downloaded"
        )
    try:
        return _load_or_download("FashionMNIST", train)
    except READ_ERRORS as error:
        raise UserError(
            f"dataset=fashion_mnist: not found in {DEBIAN_FASHION_MNIST}, and the download failed; set dataset.root, "
            "install the Debian package (apt-get install dataset-fashion-mnist), or use dataset=digits, which needs no "
            "download"
        ) from error


@implements(ImageFolder)
def _image_folder(dataset: ImageFolder, train: bool) -> Examples:
    return read_image_folder(dataset, train, cache_folder() / "image_folder")


@implements(Parquet)
def _parquet(dataset: Parquet, train: bool) -> Examples:
    return read_parquet(dataset, train, cache_folder() / "parquet")


@implements(Shards)
def _shards(dataset: Shards, train: bool) -> StreamedExamples:
    return read_shards(dataset, train)


@implements(Emoji)
def _emoji(dataset: Emoji, train: bool) -> Examples:
    return read_emoji(dataset, train, cache_folder() / "emoji")


@implements(Mnist)
def _mnist(dataset: Mnist, train: bool) -> Examples:
    return _load_torchvision("MNIST", dataset, train)


@implements(Cifar10)
def _cifar10(dataset: Cifar10, train: bool) -> Examples:
    return _load_torchvision("CIFAR10", dataset, train)


def _load_torchvision(source: str, dataset: ImageDataset, train: bool) -> Examples:
    """Load a dataset of torchvision from `dataset.root`; if this is None, from the cache or by a download."""
    try:
        return (
            _load_or_download(source, train) if dataset.root is None else _read_torchvision(source, dataset.root, train)
        )
    except READ_ERRORS as error:
        if dataset.root is not None:
            raise UserError(
                f"dataset.root={dataset.root}: contains no valid copy of {source}; name the folder that it was "
                "downloaded to, use dataset.root=null to download it, or dataset=image_folder for a folder of pictures"
            ) from error
        raise UserError(
            f"dataset={dataset.name}: the download to {cache_folder()} failed; name a folder that contains it with "
            "dataset.root=…, or one with a folder of pictures for each class with dataset=image_folder "
            "dataset.root=… dataset.image_size=32, or use dataset=digits, which needs no download"
        ) from error


def _load_or_download(source: str, train: bool) -> Examples:
    """Load a dataset of torchvision from the cache. Download it if files are missing or have a wrong checksum."""
    import torchvision.datasets
    from torchvision.datasets.utils import check_integrity

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(torchvision.datasets, source)
    if not issubclass(kind, torchvision.datasets.MNIST):
        return _read_torchvision(
            source, folder, train, download=True
        )  # torchvision verifies the checksums of the unpacked files
    raw = folder / source / "raw"
    if not all(check_integrity(raw / name, md5) for name, md5 in kind.resources):
        for name, _ in kind.resources:  # if these exist, torchvision does not download, even if they are damaged
            (raw / name).with_suffix("").unlink(missing_ok=True)
        kind(folder, download=True)
    return _read_idx_files(source, raw, train)


def _read_torchvision(source: str, folder: Path | str, train: bool, download: bool = False) -> Examples:
    """Load a dataset with its class in torchvision. Raise `ValueError` if images and labels do not match."""
    import torchvision.datasets  # not at the top, because the import takes seconds

    data = getattr(torchvision.datasets, source)(folder, train=train, download=download)
    pixels = data.data.numpy() if isinstance(data.data, Tensor) else data.data
    labels = torch.as_tensor(data.targets)
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or labels.shape != pixels.shape[:1] or labels.numel() == 0:
        raise ValueError("images and labels differ in number, or there are none")
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(data.classes):
        raise ValueError("labels out of range")
    return Examples(to_tensor(pixels), labels, list(data.classes), str(folder))


def _read_idx_files(source: str, folder: Path, train: bool) -> Examples:
    """Read idx files in `folder`, with or without gzip compression, with the reader of torchvision."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory() as unpacked:
        raw = Path(unpacked) / source / "raw"
        raw.mkdir(parents=True)
        for file in sorted(folder.glob("*-ubyte*"), reverse=True):  # name.gz before name
            if file.suffix == ".gz":
                extract_archive(file, raw)
            elif not (raw / file.name).exists():
                (raw / file.name).symlink_to(file.resolve())
        return replace(_read_torchvision(source, Path(unpacked), train), source=str(folder))


@implements(SwissRoll)
def _swiss_roll(dataset: SwissRoll, train: bool) -> Examples:
    """Return `dataset.points` points of a Swiss roll in the plane, (N, 2) float32.

    The points are (u cos u, u sin u) / 10 for u uniform in [1.5 pi, 4.5 pi], as in `make_swiss_roll` of scikit-learn
    without the axis of the roll. Each coordinate has Gaussian noise of standard deviation dataset.noise / 10. The test
    split has the same size and is independent of the train split.
    """
    seed = rng.seed_of("swiss_roll", "train" if train else "test")
    generator = torch.Generator().manual_seed(seed)  # not rng.generator: these points were always the same
    u = 1.5 * math.pi * (1 + 2 * torch.rand(dataset.points, generator=generator, dtype=torch.float64))
    noise = dataset.noise * torch.randn(dataset.points, 2, generator=generator, dtype=torch.float64)
    points = u[:, None] * torch.stack([u.cos(), u.sin()], dim=1) + noise
    return Examples((points / 10).float())


@implements(Digits)
def _digits(dataset: Digits, train: bool) -> Examples:
    """Return the digits of scikit-learn, split at random but always in the same way."""
    found = find_spec("sklearn")  # optional: pip install 'ddpm-cli[digits]'
    if found is None or found.origin is None:
        raise UserError("dataset=digits: needs scikit-learn; pip install 'ddpm-cli[digits]'")
    # The file that sklearn.datasets.load_digits reads. Importing scikit-learn would take seconds.
    table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    chosen = order[:DIGITS_IN_TRAIN] if train else order[DIGITS_IN_TRAIN:]
    pixels = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return Examples(to_tensor(pixels)[chosen], labels[chosen], [str(i) for i in range(10)])
