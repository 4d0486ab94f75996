"""A network seen as a denoiser: x_t in, an estimate of x0 and of the reverse step's variance out."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.process import Process


class Network(Protocol):
    """(x, t, y) -> output.

    x: (B, C, ...), twice the channels with self-conditioning; t: (B,); y: (B,) classes, or None. output:
    (B, C, ...), twice the channels with learned variance.
    """

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, /) -> Tensor: ...


class Output(NamedTuple):
    """What a network says of x_t.

    prediction: of eps, x0 or v, (B, C, ...) float32. fraction: of the way from the smallest to the largest
    log-variance, per dimension, or None where the variance is fixed (Nichol & Dhariwal 2021, eq. 15).
    """

    prediction: Tensor
    fraction: Tensor | None


@dataclass(frozen=True)
class Denoiser:
    """What training, sampling and likelihoods all ask of a network.

    prediction: eps, x0 or v. variance: fixed_small, fixed_large or learned_range. self_condition: the network
    also sees its last estimate of x0, cut to [-limit, limit], on the channels before x_t, zeros where there is none
    (Chen et al. 2022, arXiv:2208.04202, section 3.2).
    """

    network: Network
    process: Process
    prediction: str
    variance: str = "fixed_small"
    self_condition: bool = False
    limit: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, last_x0: Tensor | None = None) -> Output:
        """The network's output, in float32."""
        x = x_t
        if self.self_condition:
            shown = torch.zeros_like(x_t) if last_x0 is None else last_x0.clamp(-self.limit, self.limit)
            x = torch.cat([shown, x_t], dim=1)
        output = self.network(x, t, y).float()
        if self.variance != "learned_range":
            return Output(output, None)
        prediction, fraction = output.chunk(2, dim=1)
        return Output(prediction, (fraction + 1) / 2)

    def x0(self, output: Output, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x0 that `output` stands for, not clipped: (B, C, ...) float32."""
        return self.process.x0_from(self.prediction, output.prediction, x_t, t)

    def log_variance(self, output: Output, x_t: Tensor, t: Tensor) -> Tensor:
        """The log-variance of p(x_{t-1} | x_t): to be broadcast with x_t.

        fixed_small and fixed_large: Ho et al. 2020, section 3.2. learned_range: Nichol & Dhariwal 2021, eq. 15.
        """
        process = self.process
        small = process.at(process.log_posterior_variance, t, x_t)
        if self.variance == "fixed_small":
            return small
        large = process.at(process.log_betas, t, x_t)
        if output.fraction is None:
            return torch.where(t.view(small.shape) == 0, small, large)  # at t = 0 as in Ho et al.'s code
        return output.fraction * large + (1 - output.fraction) * small
