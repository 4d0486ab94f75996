"""The exponential moving average of the parameters."""

import copy

import torch
from torch import Tensor, nn

from ddpm_cli.distributed.sharding import local_part


def ema_decay(step: int, decay: float, warmup: bool, start: int) -> float:
    """Return the decay at `step` (1 is the first update). It is a pure function, so resuming needs no state.

    With warm-up it is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage, so that the
    average soon forgets the random initialisation. Before step `start` it is 0, which makes the average a copy.
    """
    if step < start:
        return 0.0
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class Ema:
    """A copy of a network whose parameters are averaged over the steps; buffers are copied, not averaged."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float, finite: Tensor) -> None:
        """Move the average towards `network`, unless the step was skipped.

        The device decides, so that the host need not wait for it: with `finite` false, the average does not change.
        """
        share = torch.where(finite, 1 - decay, 0.0)
        ours = [local_part(parameter) for parameter in self.network.parameters()]
        theirs = [local_part(parameter) for parameter in network.parameters()]
        if finite.device.type == "cuda":  # where a few kernels for all parameters are faster than one for each
            differences = torch._foreach_sub(theirs, ours)
            torch._foreach_mul_(differences, share)
            torch._foreach_add_(ours, differences)
        else:
            torch._foreach_lerp_(ours, theirs, [share] * len(ours))
        for ours_buffer, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            ours_buffer.copy_(buffer)
