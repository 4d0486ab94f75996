"""Losses read from the device now and then, and the end of a run whose losses are not finite any more."""

import math
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.errors import Failure


class TrainingDiverged(Failure):
    """Too many steps in a row had a loss or a gradient that was not finite."""


class HostCopy:
    """A copy of a tensor to the host, which is made in the background if the tensor is on CUDA."""

    def __init__(self, tensor: Tensor) -> None:
        self.in_background = tensor.device.type == "cuda"
        host = torch.empty_like(tensor, device="cpu", pin_memory=self.in_background)
        self._tensor = host.copy_(tensor, non_blocking=self.in_background)
        if self.in_background:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> Tensor:
        """Return the copy when it is complete."""
        if self.in_background:
            self._copied.synchronize()
        return self._tensor


class LossMonitor:
    """Collect the losses since the last row of metrics.csv and count the steps that were skipped.

    A step whose loss or gradient is not finite is skipped; its loss is NaN here. Losses are copied to the host once in
    `max_bad_steps` steps, and read when the next copy starts, so that the device always has steps to do. A diverged run
    therefore ends at most twice that many steps late on CUDA, and at most that many late on a CPU.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.step = 0  # the last one read
        self.skipped = 0
        self.bad_in_a_row = 0
        self.last_finite = math.nan
        self._total, self._count = 0.0, 0  # of the finite ones since the last row
        self._unread: list[Tensor] = []
        self._copy: HostCopy | None = None

    def add(self, loss: Tensor) -> None:
        """Add the loss of the next step, a scalar on any device. Raise `TrainingDiverged`."""
        self._unread.append(loss)
        if len(self._unread) >= self.max_bad_steps:
            self._finish_copy()
            self._start_copy()
            if self._copy is not None and not self._copy.in_background:
                self._finish_copy()

    def mean(self) -> float:
        """Return the mean of the finite losses since the last call, NaN without any. Raise `TrainingDiverged`."""
        self._read()
        mean = self._total / self._count if self._count else math.nan
        self._total, self._count = 0.0, 0
        return mean

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint. Raise `TrainingDiverged`."""
        self._read()
        return {
            "step": self.step,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "last_finite": self.last_finite,
            "total": self._total,
            "count": self._count,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.bad_in_a_row, self.last_finite = state["bad_in_a_row"], state["last_finite"]
        self._total, self._count = state["total"], state["count"]
        self._unread, self._copy = [], None

    def _read(self) -> None:
        """Read all losses, which waits for the device."""
        self._finish_copy()
        if self._unread:
            self._start_copy()
            self._finish_copy()

    def _start_copy(self) -> None:
        self._copy = HostCopy(torch.stack(self._unread))
        self._unread.clear()

    def _finish_copy(self) -> None:
        if self._copy is None:
            return
        losses, self._copy = self._copy.wait().tolist(), None
        for loss in losses:
            self.step += 1
            if math.isfinite(loss):
                self.last_finite, self.bad_in_a_row = loss, 0
                self._total += loss
                self._count += 1
                continue
            self.skipped += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row >= self.max_bad_steps:
                raise TrainingDiverged(
                    f"step {self.step}: the loss or the gradient was not finite in {self.bad_in_a_row} steps in a row "
                    f"(train.max_bad_steps), all of them skipped; the last finite loss was {self.last_finite:.4g}. "
                    "Try a smaller train.lr, train.grad_clip=1 or train.precision=fp32"
                )
