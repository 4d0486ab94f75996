"""The training images of all systems, Fashion-MNIST or noise of its shape, in the format that each system reads."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from ddpm_cli.data.sources import DEBIAN_FASHION_MNIST, load_examples

PICTURES = 5_000
"""Number of image files for denoising-diffusion-pytorch: an epoch of about 40 steps of 128 images."""


def prepare(data: Path) -> str:
    """Write Fashion-MNIST into `data` in the layout of torchvision, unless it exists; return the name of the data."""
    name = "Fashion-MNIST" if DEBIAN_FASHION_MNIST.is_dir() else "noise in the shape of Fashion-MNIST"
    raw = data / "FashionMNIST" / "raw"
    if not (raw / "t10k-labels-idx1-ubyte").is_file():
        for split, count in (("train", 60_000), ("t10k", 10_000)):
            write_split(data, split, *_images(split == "train", count))
    picture_folder(data)
    return name


def write_split(data: Path, split: str, values: Tensor, labels: Tensor) -> None:
    """Write the split `train` or `t10k` for torchvision's FashionMNIST: uint8 values (N, 28, 28) and labels (N,)."""
    raw = data / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    _write_idx(raw / f"{split}-images-idx3-ubyte", values)
    _write_idx(raw / f"{split}-labels-idx1-ubyte", labels)


def overrides(data: Path) -> list[str]:
    """Return the overrides with which ddpm-train reads the data."""
    return ["dataset=fashion_mnist", f"dataset.root={data}"]


def image_loader(data: Path, batch_size: int, workers: int) -> "DataLoader[Any]":
    """Return a DataLoader of torchvision's dataset, which flips and scales each image to [-1, 1] individually."""
    transform = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Lambda(_scaled)]
    )
    return DataLoader(FashionMNIST(data, transform=transform), batch_size, shuffle=True, num_workers=workers)


def endless(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Yield the batches of `loader`, epoch after epoch."""
    while True:
        yield from loader


def picture_folder(data: Path) -> Path:
    """Write the first `PICTURES` images as PNG files and return their folder."""
    folder = data / "pictures"
    if not (folder / f"{PICTURES - 1:05d}.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(FashionMNIST(data).data[:PICTURES]):
            Image.fromarray(pixels.numpy()).save(folder / f"{i:05d}.png")
    return folder


def _images(train: bool, count: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 28, 28) and labels (N,), uint8."""
    from tests.benchmarks.systems.ours import composed

    if DEBIAN_FASHION_MNIST.is_dir():
        examples = load_examples(composed("dataset=fashion_mnist").dataset, train)
        return examples.values[:, 0], torch.as_tensor(examples.labels).byte()
    generator = torch.Generator().manual_seed(int(train))
    values = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    return values, torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)


def _write_idx(file: Path, values: Tensor) -> None:
    """Write the idx format: two zeros, the type (8: uint8), the number of dimensions, their sizes, the values."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    file.write_bytes(header + values.contiguous().numpy().tobytes())


def _scaled(t: Tensor) -> Tensor:
    return t * 2 - 1
