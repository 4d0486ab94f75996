"""Images given to a command: a file, or the number of an image of the test split."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_cli.config import ImageDataset
from ddpm_cli.data.image_folder import decode
from ddpm_cli.data.sources import load_examples
from ddpm_cli.errors import UserError, check


def read_file(key: str, value: str, height: int, width: int, channels: int) -> Tensor:
    """Return the file `value` as (channels, height, width) uint8, resized and centre-cropped. Raise `UserError`."""
    try:
        return torch.from_numpy(np.array(decode(Path(value).expanduser(), height, width, channels)))
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = " ".join(str(error).split())
        raise UserError(f"{key}={value}: cannot be read as an image ({reason}); name another file") from error


def read_images(given: Mapping[str, object], dataset: ImageDataset) -> list[Tensor]:
    """Return the images that keys name, each (C, H, W) uint8 of the size of `dataset`.

    A value is a file, or the number of an image of the test split. Raises `UserError`.
    """
    channels, height, width = dataset.shape
    numbered = any(type(value) is int for value in given.values())
    images = load_examples(dataset, train=False).values if numbered else torch.empty(0)
    found = []
    for key, value in given.items():
        if type(value) is int:
            check(0 <= value < len(images), key, value, f"in 0..{len(images) - 1}, the test images, or a file")
            found.append(images[value])
        else:
            found.append(read_file(key, str(value), height, width, channels))
    return found


def read_mask(mask: str, image: object, dataset: ImageDataset) -> Tensor:
    """Return where the file `mask` is white: (1, H, W) bool. It must have the size of `image` (see `read_images`).

    Raises `UserError` for another size, and for one without any white.
    """
    _, height, width = dataset.shape
    hole = read_file("mask", mask, height, width, 1) >= 128
    size = _upright_size(mask)
    wanted = (width, height) if type(image) is int else _upright_size(str(image))
    ours, theirs = (f"{width}x{height}" for width, height in (size, wanted))
    check(size == wanted, "mask", mask, f"as large as the image, {theirs}, but is {ours}")
    check(bool(hole.any()), "mask", mask, "white where the image is to be filled; it is black throughout")
    return hole


def _upright_size(file: str) -> tuple[int, int]:
    """Return the width and height of a readable image, rotated by its EXIF orientation as in `decode`."""
    with Image.open(Path(file).expanduser()) as opened:
        return ImageOps.exif_transpose(opened).size
