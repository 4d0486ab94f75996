"""Read images from an npz file."""

import numpy as np
import torch

from ddpm_cli.api import Examples, UserError, check
from ddpm_extras import NpzFile


def load(dataset: NpzFile, train: bool) -> Examples:
    """Return the images of a split. Raise `UserError` for a file that cannot be read or has other images."""
    path = str(dataset.root)
    try:
        with np.load(path) as arrays:
            pixels, labels = arrays["images"], arrays.get("labels")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"dataset.root={path}: must be an npz file with an array named images ({error})") from error
    channels, height, width = dataset.shape
    fits = pixels.dtype == np.uint8 and pixels.shape[1:] == (height, width, channels)
    check(fits, "dataset.root", path, f"a file of images (N, {height}, {width}, {channels}) uint8")
    check(dataset.held_out < len(pixels), "dataset.held_out", dataset.held_out, f"less than the {len(pixels)} images")
    first_of_test = len(pixels) - dataset.held_out
    part = slice(first_of_test) if train else slice(first_of_test, None)
    values = torch.from_numpy(pixels[part]).permute(0, 3, 1, 2).contiguous()
    if labels is None:
        return Examples(values)
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    return Examples(values, torch.from_numpy(labels[part]).long(), classes)
