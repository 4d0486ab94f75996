"""A dataset in memory whose batches are a pure function of the step."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.distributed import collectives

DEVICE_LIMIT = 2 * 2**30
"""Largest table in bytes that is kept on the training device."""


@dataclass(frozen=True)
class Examples:
    """All examples of a split.

    values: (N, C, H, W) uint8 images, or (N, D) float32 points. labels: (N,) int64 class numbers, or None.
    classes: their names, maybe empty.
    """

    values: Tensor
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)


def to_float(values: Tensor) -> Tensor:
    """Return uint8 images scaled to [-1, 1], and points unchanged, as float32."""
    return values.float().div_(127.5).sub_(1) if values.dtype == torch.uint8 else values


class Batch(NamedTuple):
    """x0: (B, C, ...) float32; y: (B,) int64 class numbers, or None for unlabelled data."""

    x0: Tensor
    y: Tensor | None


class Table:
    """Batches of `examples` for training, without a loader process.

    The examples of all epochs form one endless sequence, each epoch in an order of its own; step s takes the
    s-th `batch_size` of it. So every example is used once an epoch, whatever the batch size divides, and a
    batch depends on (seed, step) alone; of several processes each gets its share of it. `flip` mirrors every other
    image.
    """

    def __init__(self, examples: Examples, flip: bool, seed: int, device: torch.device) -> None:
        values = examples.values
        home = device if values.numel() * values.element_size() <= DEVICE_LIMIT else values.device
        self.values = values.to(home)
        self.labels = None if examples.labels is None else examples.labels.to(home)
        self.classes = examples.classes
        self.flip = flip
        self.seed = seed
        self.device = device
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, step: int, batch_size: int) -> Batch:
        """Return this rank's part of the examples of `step` (0 is the first) on the training device."""
        own = collectives.shard_slice(batch_size)
        indices = self.indices(step * batch_size + own.start, own.stop - own.start)
        # On a CPU index_select copies an image at once where values[indices] goes number by number: 15 times faster.
        x0 = to_float(self._on_device(self.values.index_select(0, indices)))
        if self.flip:
            generator = rng.generator(self.seed, "flip", step, device=self.device)
            coins = torch.rand(batch_size, 1, 1, 1, generator=generator, device=self.device)[own]
            x0.lerp_(x0.flip(-1), (coins < 0.5).float())  # exact at 0 and 1; torch.where is slower
        return Batch(x0, None if self.labels is None else self._on_device(self.labels[indices]))

    def _on_device(self, part: Tensor) -> Tensor:
        """Return `part` on the training device; it is pinned, so that the copy to CUDA is asynchronous."""
        if self.device.type == "cuda" and part.device.type == "cpu":
            part = part.pin_memory()
        return part.to(self.device, non_blocking=True)

    def indices(self, start: int, count: int) -> Tensor:
        """Return the table indices (count,) of examples `start` to `start + count - 1` of the sequence."""
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
            self._orders = {epoch: order.to(self.values.device)}  # once an epoch, no copy in a step
        return self._orders[epoch]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Return a (N, H, W, C) or (N, H, W) uint8 array as a (N, C, H, W) tensor."""
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
