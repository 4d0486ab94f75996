"""Random geometric augmentation of images that the network is told, so that samples do not show it.

Karras et al. 2022 (arXiv:2206.00364), appendix F.2, after Karras et al. 2020 (arXiv:2006.06676, appendix B).
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = {"scale": 0.2, "stretch": 0.2, "shift": 0.125}
"""Standard deviations: of the log2 of the scale and of the stretch, and of the shift as a part of the side."""
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Low-pass filter of the wavelet sym6 (Daubechies 1992). Its centre is near SYM6[5], half a place before its middle."""
BORDER = len(SYM6) // 4
"""Pixels around an image that are transformed with it and cut off after the filter."""
AUGMENTATIONS = 9
"""Number of labels of an image."""
VALUES_AT_ONCE = 2**26
"""Number of values of an intermediate image batch that are in memory at once: 256 MiB."""


def augment(x0: Tensor, uniform: Tensor, normal: Tensor, probability: float, mirror: float) -> tuple[Tensor, Tensor]:
    """Return the images after random transformations, and the labels that describe them.

    They are mirrored left to right (with probability `mirror` / 2) and top to bottom (`probability` / 2), then scaled,
    rotated, stretched along a random direction and shifted, each with `probability`. Images are reflected at their
    edges. An image that none applies to is returned as it is. Each image depends on its own numbers only.

    Args:
        x0: (B, C, H, W) float32 with sides of at least 4.
        uniform: (B, 11) in [0, 1).
        normal: (B, 4) of a normal distribution.

    Returns:
        The images, and their labels (B, 9) as in the code of Karras et al.: both mirrorings (0 or 1), scale, cos - 1
        and sin of the rotation, stretch (2) and shift (2). All are zero for an image that was not transformed.
    """
    gates = torch.cat([uniform[:, :1] < mirror, uniform[:, 1:6] < probability], dim=1).float()
    mirrored = gates[:, :2] * (uniform[:, 6:8] < 0.5)
    scale, stretch, shift = normal[:, 0] * gates[:, 2], normal[:, 1] * gates[:, 4], normal[:, 2:] * gates[:, 5:]
    turn = math.pi * (2 * uniform[:, 8] - 1) * gates[:, 3]
    direction = math.pi * (2 * uniform[:, 9] - 1) * (uniform[:, 10] < 0.5)
    described = [scale, turn.cos() - 1, turn.sin(), stretch * direction.cos(), stretch * direction.sin()]
    labels = torch.cat([mirrored, torch.stack(described, dim=1), shift], dim=1)
    for i, side in enumerate((-1, -2)):
        x0 = torch.lerp(x0, x0.flip(side), mirrored[:, i, None, None, None])  # exact for weights 0 and 1
    pixels = torch.stack([shift[:, 0] * x0.shape[3], shift[:, 1] * x0.shape[2]], dim=1)
    maps = inverse_maps(scale, turn, stretch, direction, pixels)
    is_moved = gates[:, 2:].any(dim=1)[:, None, None, None]
    return torch.where(is_moved, _transformed(x0, maps), x0), labels


def inverse_maps(scale: Tensor, turn: Tensor, stretch: Tensor, direction: Tensor, shift: Tensor) -> Tensor:
    """Return the maps (B, 2, 3) from places (x, y) in the transformed images to places in the images.

    Places are pixels from the centre.

    Args:
        scale, stretch: (B,) in units of their standard deviation.
        turn, direction: (B,) angles.
        shift: (B, 2) in units of `STRENGTHS["shift"]` pixels.
    """
    ratio = torch.exp2(STRENGTHS["stretch"] * stretch)
    along = torch.diag_embed(torch.stack([1 / ratio, ratio], dim=1))
    linear = _rotation(turn) @ _rotation(-direction) @ along @ _rotation(direction)
    linear = linear * torch.exp2(-STRENGTHS["scale"] * scale)[:, None, None]
    return torch.cat([linear, -linear @ (STRENGTHS["shift"] * shift)[:, :, None]], dim=2)


def _rotation(angle: Tensor) -> Tensor:
    """Return the matrices (B, 2, 2) that rotate (x, y) by angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)


def _transformed(x: Tensor, maps: Tensor) -> Tensor:
    """Return the images (B, C, H, W) seen through the `inverse_maps`.

    They are reflected at their edges, sampled at twice their resolution between a wavelet's two filters, which has the
    sharpness of the original, and cut. The filters are matrices that are multiplied from both sides: unlike padding by
    what a batch needs, their shapes never change, and the host does not wait for the device.
    """
    (up_y, down_y), (up_x, down_x) = (_filters(side, x.device) for side in x.shape[2:])
    at_once = max(1, VALUES_AT_ONCE // (x.shape[1] * len(up_y) * len(up_x)))
    parts = []
    for images, inverse in zip(x.split(at_once), maps.split(at_once), strict=True):
        large = up_y @ images @ up_x.mT
        grid = _places(inverse, (down_y.shape[1], down_x.shape[1]), (len(up_y), len(up_x)))
        parts.append(down_y @ F.grid_sample(large, grid, padding_mode="zeros", align_corners=False) @ down_x.mT)
    return torch.cat(parts)


def _places(inverse: Tensor, size: tuple[int, int], source: tuple[int, int]) -> Tensor:
    """Return where in images of `source` pixels the `size` pixels of the result are: (B, *size, 2) in [-1, 1].

    Both have twice the resolution of the images that `inverse` is about. As the filter is not centred, their pixels are
    half a place further.
    """
    y, x = (torch.arange(side, device=inverse.device) - (side - 1) / 2 + 0.5 for side in size)
    places = torch.stack(torch.broadcast_tensors(x, y[:, None], torch.full((), 2.0, device=inverse.device)), dim=-1)
    seen_x, seen_y = (torch.einsum("bij,yxj->ibyx", inverse, places) - 0.5).unbind()
    return torch.stack([seen_x * (2 / source[1]), seen_y * (2 / source[0])], dim=-1)


@cache
def _filters(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices that reflect and upsample rows of `side` values, and that downsample and cut them."""
    reach = side - 1  # a reflection can give no more
    reflect = F.pad(torch.eye(side)[None], (reach, reach), mode="reflect")[0].mT
    up = _upsampling(side + 2 * reach) @ reflect
    down = _upsampling(side + 2 * BORDER).mT[BORDER:-BORDER]
    return up.to(device), down.to(device)


def _upsampling(side: int) -> Tensor:
    """Return the matrix (2 side, side) that puts a zero after each value and filters with `SYM6`.

    The transposed matrix takes the result back exactly, because the filters of a wavelet are orthogonal.
    """
    tap = torch.arange(2 * side)[:, None] + 5 - 2 * torch.arange(side)
    inside = (tap >= 0) & (tap < len(SYM6))
    return torch.where(inside, torch.tensor(SYM6)[tap.clamp(0, len(SYM6) - 1)], 0.0)
