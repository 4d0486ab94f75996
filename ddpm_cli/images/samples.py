"""Draw samples, which are images or points."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ddpm_cli.images.plots import scatter
from ddpm_cli.images.png_gif import grid, labelled_grid, to_uint8


def picture(samples: Tensor, labels: Sequence[str] | None = None) -> Image.Image:
    """Return a grid of images (N, C, H, W) in [-1, 1] or uint8, or a scatter plot of points (N, 2).

    labels: the label of each image, or None. With several labels, the grid has a row for each of them.
    """
    if samples.ndim == 2:
        return scatter(samples)
    pixels = to_uint8(samples)
    return labelled_grid(pixels, labels) if labels and len({*labels}) > 1 else grid(pixels)
