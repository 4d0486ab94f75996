"""Load each dataset as one `Examples` of the size and channels that its config asks for."""

import os
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config import Cifar10, Dataset, Digits, FashionMnist, ImageDataset, ImageFolder, Mnist, SwissRoll
from ddpm_cli.data.image_folder import read_image_folder
from ddpm_cli.data.points import swiss_roll
from ddpm_cli.data.table import Examples, to_tensor
from ddpm_cli.errors import UserError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
AnyDataset = TypeVar("AnyDataset", bound=Dataset)

DIGITS_IN_TRAIN = 1500
UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError, IndexError, KeyError, TypeError, zlib.error)
"""Exceptions of torchvision for missing or damaged files and failed downloads."""


def cache_folder() -> Path:
    """Return the folder of downloads and decoded images that all runs of a user share."""
    return Path(os.environ.get("DDPM_CACHE", "~/.cache/ddpm_cli")).expanduser()


def load_examples(dataset: Dataset, train: bool) -> Examples:
    """Return the train or the test split; images are resized to `dataset.image_size` and with `dataset.channels`.

    Raises `UserError` where the data cannot be had, with what to do.
    """
    match dataset:
        case SwissRoll():
            return swiss_roll(dataset, train)
        case ImageFolder():
            return read_image_folder(dataset, train, cache_folder() / "image_folder")
        case FashionMnist():
            examples = _fashion_mnist(dataset, train)
        case Mnist():
            examples = _torchvision("MNIST", dataset, train)
        case Cifar10():
            examples = _torchvision("CIFAR10", dataset, train)
        case Digits():
            examples = _digits(train)
        case _:
            raise TypeError(f"no examples for {dataset}")
    values = _resized(_with_channels(examples.values, dataset.channels), dataset)
    return Examples(values, examples.labels, examples.classes)


def moved(dataset: AnyDataset, root: str | None) -> AnyDataset:
    """Return `dataset` with `root` replaced unless it is None. Raise `UserError` for a dataset without a root."""
    if root is None:
        return dataset
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"root={root}: dataset={dataset.name} is read from no folder; leave it out")
    return replace(dataset, root=root)


def check_labels(dataset: Dataset, examples: Examples) -> None:
    """Raise `UserError` if the examples of `dataset` have no labels."""
    if examples.labels is None:
        how = " (sub-folders directly below dataset.root are the classes)" if isinstance(dataset, ImageFolder) else ""
        raise UserError(f"conditioning=class: dataset={dataset.name} has no labels{how}; use conditioning=none")


def _fashion_mnist(dataset: ImageDataset, train: bool) -> Examples:
    """Load from `dataset.root` (torchvision's layout or idx files), else from Debian's package, else download."""
    folders = [DEBIAN_FASHION_MNIST] if dataset.root is None else [Path(dataset.root), DEBIAN_FASHION_MNIST]
    for folder in folders:
        try:
            if (folder / "FashionMNIST" / "raw").is_dir():
                return _opened("FashionMNIST", folder, train)
            if any(folder.glob("train-images-idx3-ubyte*")):
                return _from_idx("FashionMNIST", folder, train)
        except UNREADABLE as error:
            raise UserError(
                f"dataset.root={folder}: its Fashion-MNIST is damaged; fetch it anew, or name another folder"
            ) from error
    try:
        return _downloaded("FashionMNIST", train)
    except UNREADABLE as error:
        root = dataset.root or "null"
        raise UserError(
            f"dataset=fashion_mnist: not in dataset.root={root}, nor in {DEBIAN_FASHION_MNIST} "
            "(apt-get install dataset-fashion-mnist), and the download failed; mend one of the three, "
            "or use dataset=digits, which needs no download"
        ) from error


def _torchvision(source: str, dataset: ImageDataset, train: bool) -> Examples:
    """Load a torchvision dataset from `dataset.root`, else from the cache, downloading it if it is missing."""
    try:
        return _downloaded(source, train) if dataset.root is None else _opened(source, dataset.root, train)
    except UNREADABLE as error:
        if dataset.root is not None:
            raise UserError(
                f"dataset.root={dataset.root}: torchvision finds no sound {source} there; name the "
                "folder it was downloaded to, or leave dataset.root=null to download it"
            ) from error
        raise UserError(
            f"dataset={dataset.name}: the download to {cache_folder()} failed; name a folder that has it "
            "with dataset.root=…, or use dataset=digits, which needs no download"
        ) from error


def _downloaded(source: str, train: bool) -> Examples:
    """Load a torchvision dataset from the cache; download it if its files are missing or their checksums differ."""
    import torchvision.datasets
    from torchvision.datasets.utils import check_integrity

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(torchvision.datasets, source)
    if not issubclass(kind, torchvision.datasets.MNIST):
        return _opened(source, folder, train, download=True)  # torchvision checks what it has unpacked
    raw = folder / source / "raw"
    if not all(check_integrity(raw / name, md5) for name, md5 in kind.resources):
        for name, _ in kind.resources:  # torchvision fetches nothing while these are there, whatever is in them
            (raw / name).with_suffix("").unlink(missing_ok=True)
        kind(folder, download=True)
    return _from_idx(source, raw, train)


def _opened(source: str, folder: Path | str, train: bool, download: bool = False) -> Examples:
    import torchvision.datasets  # here, for it takes seconds that other data sets need not wait

    data = getattr(torchvision.datasets, source)(folder, train=train, download=download)
    pixels = data.data.numpy() if isinstance(data.data, Tensor) else data.data
    labels = torch.as_tensor(data.targets)
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or labels.shape != pixels.shape[:1] or labels.numel() == 0:
        raise ValueError("not as many labels as images, or no images")
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(data.classes):
        raise ValueError("labels of classes that there are not")
    return Examples(to_tensor(pixels), labels, list(data.classes))


def _from_idx(source: str, folder: Path, train: bool) -> Examples:
    """Read the idx files of `folder`, compressed or not, with torchvision's reader."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory() as unpacked:
        raw = Path(unpacked) / source / "raw"
        raw.mkdir(parents=True)
        for file in sorted(folder.glob("*-ubyte*"), reverse=True):  # x.gz before x
            if file.suffix == ".gz":
                extract_archive(file, raw)
            elif not (raw / file.name).exists():
                (raw / file.name).symlink_to(file.resolve())
        return _opened(source, Path(unpacked), train)


def _digits(train: bool) -> Examples:
    try:
        from sklearn.datasets import load_digits  # optional: pip install 'ddpm-cli[digits]'
    except ImportError as error:
        raise UserError("dataset=digits: needs scikit-learn; pip install 'ddpm-cli[digits]'") from error
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    chosen = order[:DIGITS_IN_TRAIN] if train else order[DIGITS_IN_TRAIN:]
    pixels = (data.images * (255 / 16)).round().astype("uint8")
    return Examples(to_tensor(pixels)[chosen], torch.as_tensor(data.target)[chosen], [str(i) for i in range(10)])


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1).contiguous()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as Pillow's "L"
    return torch.cat([(part * luma).sum(1, keepdim=True).round().byte() for part in pixels.split(4096)])


def _resized(pixels: Tensor, dataset: ImageDataset) -> Tensor:
    """Resize to the height and width of the config; crop the centre if the aspect ratio differs."""
    height, width = dataset.shape[1:]
    if tuple(pixels.shape[2:]) == (height, width):
        return pixels
    need = 2 * len(pixels) * dataset.channels * height * width  # all parts, and then the whole
    if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(
            f"dataset.image_size={dataset.image_size}: {len(pixels)} images of that size take "
            f"{need / 2**30:.0f} GiB of memory, more than there is; use a smaller size"
        )
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    size = [max(height, round(pixels.shape[2] * scale)), max(width, round(pixels.shape[3] * scale))]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    window = (..., slice(top, top + height), slice(left, left + width))

    def resize(part: Tensor) -> Tensor:  # back to bytes part by part, for floats take four times the memory
        large = F.interpolate(part.float(), size=size, mode="bilinear", antialias=True)
        return large[window].round().clamp(0, 255).byte()

    return torch.cat([resize(part) for part in pixels.split(4096)])
