"""Read images that a user names by a file or by an index into the test split."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_cli.config import ImageDataset
from ddpm_cli.data.decoding import decode_image
from ddpm_cli.data.sources import load_examples
from ddpm_cli.errors import UserError, check


def read_file(key: str, value: str, height: int, width: int, channels: int) -> Tensor:
    """Return the image in the file `value` as (channels, height, width) uint8, resized and cropped at the centre.

    key: the config key of the file, for error messages. Raises `UserError` if the file cannot be decoded.
    """
    try:
        return torch.from_numpy(np.array(decode_image(Path(value).expanduser(), height, width, channels)))
    except Exception as error:  # decoders of Pillow raise many types for broken files
        reason = " ".join(str(error).split())
        raise UserError(f"{key}={value}: cannot be read as an image ({reason}); name another file") from error


def load_user_images(given: Mapping[str, object], dataset: ImageDataset) -> list[Tensor]:
    """Return the images that the values of config keys name, each (C, H, W) uint8 of the size of `dataset`.

    given: for each key, a file or the index of an image in the test split. Raises `UserError` if a file cannot be
    decoded or an index is out of range.
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
    """Return the mask in the file `mask` as (1, H, W) bool: true where it is white.

    image: the image that the mask belongs to, a file or an index (see `load_user_images`). Raises `UserError` if the
    file cannot be decoded, if its size differs from that of the image, or if no pixel is white.
    """
    _, height, width = dataset.shape
    hole = read_file("mask", mask, height, width, 1) >= 128
    size = _upright_size(mask)
    wanted = (width, height) if type(image) is int else _upright_size(str(image))
    ours, theirs = (f"{width}x{height}" for width, height in (size, wanted))
    check(size == wanted, "mask", mask, f"as large as the image, {theirs}, but is {ours}")
    check(bool(hole.any()), "mask", mask, "white where the image is to be filled, but is all black")
    return hole


def _upright_size(file: str) -> tuple[int, int]:
    """Return the width and height of an image after rotation by its EXIF orientation, as in `decode_image`."""
    with Image.open(Path(file).expanduser()) as opened:
        return ImageOps.exif_transpose(opened).size
