"""Change the size and the channels of images that are decoded already."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config import ImageDataset
from ddpm_cli.errors import UserError


def convert_channels(pixels: Tensor, channels: int) -> Tensor:
    """Convert images (N, C, H, W) uint8 from gray to RGB or from RGB to gray."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1).contiguous()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as for mode L of Pillow
    return torch.cat([(part * luma).sum(1, keepdim=True).round().byte() for part in pixels.split(4096)])


def resize_and_crop(pixels: Tensor, dataset: ImageDataset) -> Tensor:
    """Resize images (N, C, H, W) uint8 to the size of the config. Crop the centre if the aspect ratio differs."""
    height, width = dataset.shape[1:]
    if tuple(pixels.shape[2:]) == (height, width):
        return pixels
    need = 2 * len(pixels) * dataset.channels * height * width  # the list of parts and their concatenation
    if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(
            f"dataset.image_size={dataset.image_size}: {len(pixels)} images of that size need "
            f"{need / 2**30:.0f} GiB of memory, more than this machine has; use a smaller size"
        )
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    size = [max(height, round(pixels.shape[2] * scale)), max(width, round(pixels.shape[3] * scale))]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    window = (..., slice(top, top + height), slice(left, left + width))

    def resize(part: Tensor) -> Tensor:  # part by part, because floats need four times the memory
        large = F.interpolate(part.float(), size=size, mode="bilinear", antialias=True)
        return large[window].round().clamp(0, 255).byte()

    return torch.cat([resize(part) for part in pixels.split(4096)])
