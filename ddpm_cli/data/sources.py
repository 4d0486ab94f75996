"""Where images come from: each source becomes one `Images` of the size and channels its config asks for."""

import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.data.image_folder import read_image_folder
from ddpm_cli.data.table import Images, to_tensor
from ddpm_cli.errors import UserError
from ddpm_cli.options import Cifar10, Dataset, Digits, FashionMnist, ImageFolder, Mnist

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DIGITS_IN_TRAIN = 1500
UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError, IndexError)
"""What torchvision raises for files that are missing or damaged, and for a download that fails."""


def cache_folder() -> Path:
    """Where downloads and decoded folders are kept for all runs of a user."""
    return Path(os.environ.get("DDPM_CACHE", "~/.cache/ddpm_cli")).expanduser()


def load_images(dataset: Dataset, train: bool) -> Images:
    """The train or the test split, resized to `dataset.image_size` and with `dataset.channels`.

    Raises `UserError` where the data cannot be had, with what to do.
    """
    match dataset:
        case FashionMnist():
            images = _fashion_mnist(dataset, train)
        case Mnist():
            images = _torchvision("MNIST", dataset, train)
        case Cifar10():
            images = _torchvision("CIFAR10", dataset, train)
        case Digits():
            images = _digits(train)
        case ImageFolder():
            return read_image_folder(dataset, train, cache_folder() / "image_folder")
        case _:
            raise TypeError(f"no images for {dataset}")
    return Images(
        _resized(_with_channels(images.pixels, dataset.channels), dataset), images.labels, images.classes
    )


def _fashion_mnist(dataset: Dataset, train: bool) -> Images:
    """From `dataset.root`, in torchvision's layout or as idx files, else Debian's, else downloaded."""
    folders = [DEBIAN_FASHION_MNIST] if dataset.root is None else [Path(dataset.root), DEBIAN_FASHION_MNIST]
    for folder in folders:
        try:
            if (folder / "FashionMNIST" / "raw").is_dir():
                return _opened("FashionMNIST", folder, train)
            if any(folder.glob("train-images-idx3-ubyte*")):
                return _from_idx(folder, train)
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


def _torchvision(source: str, dataset: Dataset, train: bool) -> Images:
    """A torchvision data set from `dataset.root`, else from the cache, downloaded where it is missing."""
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


def _downloaded(source: str, train: bool) -> Images:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return _opened(source, folder, train, download=True)


def _opened(source: str, folder: Path | str, train: bool, download: bool = False) -> Images:
    import torchvision.datasets  # here, for it takes seconds that other data sets need not wait

    data = getattr(torchvision.datasets, source)(folder, train=train, download=download)
    pixels = data.data.numpy() if isinstance(data.data, Tensor) else data.data
    return Images(to_tensor(pixels), torch.as_tensor(data.targets), list(data.classes))


def _from_idx(folder: Path, train: bool) -> Images:
    """The idx files of `folder`, plain or gzipped, through torchvision's reader."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory() as unpacked:
        raw = Path(unpacked) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for file in folder.glob("*-ubyte*"):
            if file.suffix == ".gz":
                extract_archive(file, raw)
            else:
                (raw / file.name).symlink_to(file.resolve())
        return _opened("FashionMNIST", Path(unpacked), train)


def _digits(train: bool) -> Images:
    try:
        from sklearn.datasets import load_digits  # optional: pip install 'ddpm-cli[digits]'
    except ImportError as error:
        raise UserError("dataset=digits: needs scikit-learn; pip install 'ddpm-cli[digits]'") from error
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    chosen = order[:DIGITS_IN_TRAIN] if train else order[DIGITS_IN_TRAIN:]
    pixels = (data.images * (255 / 16)).round().astype("uint8")
    return Images(
        to_tensor(pixels)[chosen], torch.as_tensor(data.target)[chosen], [str(i) for i in range(10)]
    )


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1).contiguous()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as Pillow's "L"
    return torch.cat([(part * luma).sum(1, keepdim=True).round().byte() for part in pixels.split(4096)])


def _resized(pixels: Tensor, dataset: Dataset) -> Tensor:
    """Resized, and centre-cropped where the proportions differ, to the config's height and width."""
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
