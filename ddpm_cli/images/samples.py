"""A picture of samples, which may be images or points."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ddpm_cli.images.plots import scatter
from ddpm_cli.images.png_gif import grid, labelled_grid, to_uint8


def picture(samples: Tensor, labels: Sequence[str] | None = None) -> Image.Image:
    """Return images (N, C, H, W) in [-1, 1] as a grid with a row for each label, or points (N, 2) as a scatter plot."""
    if samples.ndim == 2:
        return scatter(samples)
    pixels = to_uint8(samples)
    return labelled_grid(pixels, labels) if labels else grid(pixels)
