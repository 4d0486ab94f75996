"""A data set in memory, and its batches as a pure function of the step."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ddpm_cli import rng

DEVICE_LIMIT = 2 * 2**30
"""Bytes up to which a table lives on the training device."""


@dataclass(frozen=True)
class Images:
    """All images of a split.

    pixels: (N, C, H, W) uint8. labels: (N,) int64 class numbers, or None. classes: their names, maybe empty.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)


class Table:
    """Batches of `images` for training, without a loader process.

    The images of all epochs form one endless sequence, each epoch in an order of its own; step s takes the
    s-th `batch_size` of it. So every image is used once an epoch, whatever the batch size divides, and a
    batch depends on (seed, step) alone.
    """

    def __init__(self, images: Images, flip: bool, seed: int, device: torch.device) -> None:
        fits = images.pixels.numel() <= DEVICE_LIMIT
        self.pixels = images.pixels.to(device) if fits else images.pixels
        self.flip = flip
        self.seed = seed
        self.device = device
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, step: int, batch_size: int) -> Tensor:
        """The images of `step`, 0 being the first: (batch_size, C, H, W) float32 in [-1, 1] on the device."""
        pixels = self.pixels[self.indices(step * batch_size, batch_size)]
        x0 = self._on_device(pixels).float() / 127.5 - 1
        if self.flip:
            generator = rng.generator(self.seed, "flip", step, device=self.device)
            coins = torch.rand(batch_size, 1, 1, 1, generator=generator, device=self.device)
            x0 = torch.where(coins < 0.5, x0.flip(-1), x0)
        return x0

    def _on_device(self, pixels: Tensor) -> Tensor:
        """`pixels` on the training device; CUDA is not waited for, which takes pinned memory."""
        if self.device.type == "cuda" and pixels.device.type == "cpu":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)

    def indices(self, start: int, count: int) -> Tensor:
        """The places in the table of images `start` to `start + count - 1` of the sequence: (count,)."""
        parts: list[Tensor] = []
        while count > 0:
            epoch, first = divmod(start, len(self))
            part = self._order(epoch)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self), generator=rng.generator(self.seed, "order", epoch))
            self._orders = {epoch: order.to(self.pixels.device)}  # once an epoch, no copy in a step
        return self._orders[epoch]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(N, H, W, C) or (N, H, W) uint8 array -> (N, C, H, W) tensor."""
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
