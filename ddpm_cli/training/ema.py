"""The exponential moving average of the parameters."""

import copy

import torch
from torch import nn


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
    def update(self, network: nn.Module, decay: float) -> None:
        torch._foreach_lerp_((*self.network.parameters(),), (*network.parameters(),), 1 - decay)
        for ours, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            ours.copy_(theirs)
