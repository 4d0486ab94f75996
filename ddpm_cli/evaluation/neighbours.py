"""Are samples copies? The training images that are nearest to them."""

import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.images.png_gif import grid

AT_ONCE = 8192


def nearest(images: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` of `among` (N, C, H, W) nearest to each of `images` (B, C, H, W), both uint8, by root mean square
    difference in [0, 255]: the differences, rising, and which they are, both (B, count).
    """
    x = images.flatten(1).float()
    distances, places = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.long)
    for start in range(0, len(among), AT_ONCE):
        part = among[start : start + AT_ONCE].flatten(1).float()
        new = torch.cdist(x, part, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
        numbers = torch.arange(start, start + len(part)).expand(len(x), -1)
        distances, places = torch.cat([distances, new], dim=1), torch.cat([places, numbers], dim=1)
        distances, order = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        places = places.gather(1, order)
    return distances, places


def neighbours_picture(images: Tensor, among: Tensor, places: Tensor) -> Image.Image:
    """A row for each of `images`: it, and then those of `among` at its `places` (B, K)."""
    rows = torch.cat([images.unsqueeze(1), among[places]], dim=1)
    return grid(rows.flatten(0, 1), columns=rows.shape[1])
