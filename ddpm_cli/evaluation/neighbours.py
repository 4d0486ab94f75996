"""Find the nearest training images of samples, to detect copies of training images."""

import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.images.png_gif import grid

CHUNK_SIZE = 8192
"""Number of images that are compared at once, to limit memory."""


def nearest(images: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` images of `among` (N, C, H, W) nearest to each of `images` (B, C, H, W), both uint8.

    Returns the distances (B, count) in ascending order, which are root mean square differences of pixels in [0, 255],
    and the indices (B, count) into `among`. If N < count, there are N columns.
    """
    x = images.flatten(1).float()
    distances, indices = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.long)
    for start in range(0, len(among), CHUNK_SIZE):
        part = among[start : start + CHUNK_SIZE].flatten(1).float()
        new = torch.cdist(x, part, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
        numbers = torch.arange(start, start + len(part)).expand(len(x), -1)
        distances, indices = torch.cat([distances, new], dim=1), torch.cat([indices, numbers], dim=1)
        distances, order = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
    return distances, indices


def neighbours_picture(images: Tensor, among: Tensor, indices: Tensor) -> Image.Image:
    """Return a grid with a row for each of `images` (B, C, H, W).

    A row shows the image, then the images of `among` at its `indices` (B, K).
    """
    rows = torch.cat([images.unsqueeze(1), among[indices]], dim=1)
    return grid(rows.flatten(0, 1), columns=rows.shape[1])
