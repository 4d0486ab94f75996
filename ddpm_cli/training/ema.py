"""Averages of the parameters: the exponential moving average, and power-function averages of several lengths."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_cli.averages.power import exponent_of, power_decay
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
        _move(self.network.parameters(), network.parameters(), decay, finite)
        for ours_buffer, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            ours_buffer.copy_(buffer)


class PowerAverages:
    """Averages of the parameters whose lengths are fractions of the steps so far (Karras et al. 2024, section 3.1).

    Those of other lengths are computed from them after training, see `ddpm_cli.averages`. A network that is sharded
    must be so already.

    Attributes:
        tensors: the parameters by name, of each length in `lengths`.
    """

    def __init__(self, lengths: Sequence[float], network: nn.Module) -> None:
        self._exponents = [exponent_of(length) for length in lengths]
        self.tensors = [{name: x.detach().clone() for name, x in network.named_parameters()} for _ in lengths]

    @torch.no_grad()
    def update(self, network: nn.Module, step: int, finite: Tensor) -> None:
        """Move the averages towards `network`, unless `step` (1 is the first) was skipped, as in `Ema.update`."""
        for exponent, average in zip(self._exponents, self.tensors, strict=True):
            _move(average.values(), network.parameters(), power_decay(step, exponent), finite)

    def state(self, stored: Callable[[Tensor], Any]) -> dict[int, dict[str, Any]]:
        """Return the averages by number and name, each tensor as `stored` returns it."""
        return {i: {name: stored(x) for name, x in own.items()} for i, own in enumerate(self.tensors)}


def _move(averages: Iterable[Tensor], parameters: Iterable[Tensor], decay: float, finite: Tensor) -> None:
    """Move `averages` towards `parameters` in place by 1 - decay of the difference, or not at all unless `finite`."""
    share = torch.where(finite, 1 - decay, 0.0)
    ours = [local_part(average) for average in averages]
    theirs = [local_part(parameter) for parameter in parameters]
    if finite.device.type == "cuda":  # where a few kernels for all parameters are faster than one for each
        differences = torch._foreach_sub(theirs, ours)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(ours, differences)
    else:
        torch._foreach_lerp_(ours, theirs, [share] * len(ours))
