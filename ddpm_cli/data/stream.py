"""Training batches of images that are decoded ahead of the step that needs them."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.table import Batches, Examples, StreamedExamples, Table

THREADS = 4
"""Number of threads that decode images."""
AHEAD = 2
"""Number of steps whose images are decoded ahead."""


class Decoding(NamedTuple):
    """The images of a batch that are being decoded, and their indices (B,)."""

    images: list[Future[np.ndarray]]
    indices: Tensor


class Stream(Batches):
    """Batches of streamed examples: the same as those of a `Table` with the same images.

    This rank's part of the next `AHEAD` batches is decoded by `THREADS` threads while a step is computed. Nothing else
    is kept in memory.
    """

    def __init__(
        self, examples: StreamedExamples, flip: bool, seed: int, device: torch.device, augment: float = 0.0
    ) -> None:
        super().__init__(examples, flip, seed, device, torch.device("cpu"), augment)
        self._read = examples.read
        self._pool = ThreadPoolExecutor(THREADS, "decode")
        self._pending: dict[tuple[int, int, int], Decoding] = {}

    def _part(self, step: int, batch_size: int, offset: int) -> tuple[Tensor, Tensor]:
        wanted = [(later, batch_size, offset) for later in range(step, step + 1 + AHEAD)]
        for key in self._pending.keys() - wanted:  # of steps that are not among the next ones any more
            for image in self._pending.pop(key).images:
                image.cancel()
        for key in wanted:
            if key not in self._pending:
                self._pending[key] = self._start(*key)
        images, indices = self._pending.pop(wanted[0])
        return torch.from_numpy(np.stack([image.result() for image in images])), indices

    def _start(self, step: int, batch_size: int, offset: int) -> Decoding:
        indices = self._indices_of(step, batch_size, offset)
        return Decoding([self._pool.submit(self._read, index) for index in indices.tolist()], indices)


def batches_of(
    examples: Examples | StreamedExamples, flip: bool, seed: int, device: torch.device, augment: float = 0.0
) -> Batches:
    """Return the training batches of `examples`."""
    kind = Stream if isinstance(examples, StreamedExamples) else Table
    return kind(examples, flip, seed, device, augment)  # type: ignore[arg-type]
