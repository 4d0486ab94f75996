"""A network as a denoiser: it estimates x0, and the variance of the reverse process, from x_t."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ddpm_cli.diffusion.predictions import Parameterization, parameterization
from ddpm_cli.diffusion.process import Process


class Network(Protocol):
    """(x, t, y) -> output.

    x: (B, C, ...), twice the channels with self-conditioning; t: (B,); y: (B,) classes, or None. output:
    (B, C, ...), twice the channels with learned variance. t may be any numbers, see `Parameterization.network_time`.
    """

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None, /) -> Tensor: ...


class Output(NamedTuple):
    """The output of a network for x_t.

    Attributes:
        prediction: of eps, x0, v, flow or edm, (B, C, ...) float32.
        fraction: position of the log-variance between its smallest (0) and its largest value (1) for each dimension;
            None if the variance is fixed (Nichol & Dhariwal 2021, eq. 15).
    """

    prediction: Tensor
    fraction: Tensor | None


@dataclass(frozen=True)
class Denoiser:
    """The network of a diffusion process, for training, sampling and likelihoods.

    Attributes:
        prediction: eps, x0, v, flow or edm.
        variance: fixed_small, fixed_large or learned_range.
        self_condition: the network also gets its last estimate of x0, clipped to [-limit, limit], on the channels
            before x_t; zeros if there is none (Chen et al. 2022, arXiv:2208.04202, section 3.2).
        sigma_data: standard deviation of the data, for the prediction edm.
    """

    network: Network
    process: Process
    prediction: str
    variance: str = "fixed_small"
    self_condition: bool = False
    limit: float = 1.0
    sigma_data: float = 0.5
    parameterization: Parameterization = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameterization", parameterization(self.prediction, self.sigma_data))

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, last_x0: Tensor | None = None) -> Output:
        """Return the output of the network, in float32."""
        x = self.parameterization.network_input(x_t, *self._amplitudes(t, x_t))
        if self.self_condition:
            shown = torch.zeros_like(x_t) if last_x0 is None else last_x0.clamp(-self.limit, self.limit)
            x = torch.cat([shown, x], dim=1)
        output = self.network(x, self.parameterization.network_time(t, self.process.snr[t]), y).float()
        if self.variance != "learned_range":
            return Output(output, None)
        prediction, fraction = output.chunk(2, dim=1)
        return Output(prediction, (fraction + 1) / 2)

    def x0(self, output: Output, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x0 that corresponds to `output`, not clipped: (B, C, ...) float32."""
        return self.parameterization.x0(output.prediction, x_t, *self._amplitudes(t, x_t))

    def eps(self, output: Output, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of eps that corresponds to `output`: (B, C, ...) float32."""
        return self.parameterization.eps(output.prediction, x_t, *self._amplitudes(t, x_t))

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return what the network is trained to predict, (B, C, ...) float32."""
        return self.parameterization.target(x0, eps, *self._amplitudes(t, x0))

    def _amplitudes(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the amplitudes of x0 and of eps in x_t, which broadcast with `like`."""
        return self.process.at(self.process.signal, t, like), self.process.at(self.process.sigma, t, like)

    def log_variance(self, output: Output, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the log-variance of p(x_{t-1} | x_t), which broadcasts with x_t.

        fixed_small and fixed_large: Ho et al. 2020, section 3.2. learned_range: Nichol & Dhariwal 2021, eq. 15.
        """
        process = self.process
        small = process.at(process.log_posterior_variance, t, x_t)
        if self.variance == "fixed_small":
            return small
        large = process.at(process.log_forward_variance, t, x_t)
        if output.fraction is None:
            return torch.where(t.view(small.shape) == 0, small, large)  # at t = 0 as in Ho et al.'s code
        return interpolate_log(output.fraction, small, large)


LogVariance = TypeVar("LogVariance", float, Tensor)


def interpolate_log(fraction: Tensor, small: LogVariance, large: LogVariance) -> Tensor:
    """Return the logarithm at `fraction` of the way from `small` to `large` (Nichol & Dhariwal 2021, eq. 15)."""
    return fraction * large + (1 - fraction) * small
