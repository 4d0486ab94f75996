"""The Gaussian diffusion process: q(x_t | x_0) and q(x_s | x_t, x_0).

x_t = signal_t x_0 + sigma_t eps, with t from 0 to T-1. Variance-preserving processes (Ho et al. 2020,
arXiv:2006.11239), variance-exploding ones and flows differ in these two amplitudes only. All arithmetic here is in
float32 or float64, independent of the dtype of the network.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Noise = Callable[[], Tensor]
"""Returns new standard normal noise of the shape of x at each call."""
VARIANCE_PRESERVING = 1e-6
"""Largest |signal**2 + sigma**2 - 1| of a variance-preserving process."""


class Path(NamedTuple):
    """The amplitudes of x_0 and of eps in x_t for t in 0..T-1: (T,) float64 each, on the CPU."""

    signal: Tensor
    sigma: Tensor


def path_of_betas(betas: Tensor) -> Path:
    """Return the variance-preserving path whose q(x_t | x_{t-1}) have the variances `betas`, (T,) float64."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return Path(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(of_x0 x_0 + of_x_t x_t, std**2), and the standard deviation of q(x_t | x_s)."""

    of_x0: float
    of_x_t: float
    std: float
    forward_std: float


class Process:
    """The tables of a path.

    Attributes:
        signals, sigmas: T Python floats each, for the coefficients of samplers in double precision.
        signal, sigma, snr: (T,) float32 on `device`, for batches of t. snr is (signal / sigma)**2.
        log_forward_variance, log_posterior_variance: (T,) float32, the log-variances of q(x_t | x_{t-1}) and
            q(x_{t-1} | x_t, x_0). The latter variance is 0 at t = 0, where the value of t = 1 is used, as in Ho et
            al.'s code.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        signal, sigma = path
        self.signals: list[float] = signal.tolist()
        self.sigmas: list[float] = sigma.tolist()
        steps = [self.posterior(t, t - 1) for t in range(self.timesteps)]
        stds = [step.std for step in steps]
        stds[0] = stds[1] if len(stds) > 1 else steps[0].forward_std

        def table(values: Tensor) -> Tensor:
            return values.float().to(device)  # cast before the move: MPS has no float64

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        self.signal = table(signal)
        self.sigma = table(sigma)
        self.snr = table((signal / sigma) ** 2)
        self.log_forward_variance = table(2 * column([step.forward_std for step in steps]).log())
        self.log_posterior_variance = table(2 * column(stds).log())
        self._of_x0 = table(column([step.of_x0 for step in steps]))
        self._of_x_t = table(column([step.of_x_t for step in steps]))

    @classmethod
    def from_betas(cls, betas: Tensor, device: torch.device | str = "cpu") -> "Process":
        """Return the variance-preserving process with the variances `betas`, (T,) float64."""
        return cls(path_of_betas(betas), device)

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.signals)

    @property
    def alphas_cumprod(self) -> list[float]:
        """The squares of `signals`, which is their name for variance-preserving processes."""
        return [signal**2 for signal in self.signals]

    def amplitudes(self, t: int) -> tuple[float, float]:
        """Return the amplitudes of x_0 and of eps in x_t; t = -1 is the data."""
        return (1.0, 0.0) if t < 0 else (self.signals[t], self.sigmas[t])

    def logsnr(self, t: int) -> float:
        """Return log(signal**2 / sigma**2) at t in 0..T-1, which is -inf without signal."""
        signal, sigma = self.amplitudes(t)
        return 2 * math.log(signal / sigma) if signal > 0 else -math.inf

    def initial_std(self, t: int) -> float:
        """Return the standard deviation of the noise that a sampler starts from at t.

        It is 1 for variance-preserving processes, whose x_t has unit variance if the data have, and sigma_t for others.
        """
        signal, sigma = self.amplitudes(t)
        return 1.0 if abs(signal**2 + sigma**2 - 1) < VARIANCE_PRESERVING else sigma

    def posterior(self, t: int, s: int) -> Posterior:
        """Return q(x_s | x_t, x_0) for s < t; s = -1 is the data (Kingma et al. 2021, arXiv:2107.00630, appendix A).

        For neighbours of a variance-preserving process these are eq. 6 and 7 of Ho et al. 2020. In general, with the
        ratio r of the two signal-to-noise amplitudes, q(x_t | x_s) has the variance sigma_t**2 (1 - r**2).
        """
        (signal_t, sigma_t), (signal_s, sigma_s) = self.amplitudes(t), self.amplitudes(s)
        ratio = signal_t * sigma_s / (sigma_t * signal_s)
        rest = (1 - ratio) * (1 + ratio)
        return Posterior(
            signal_s * rest, ratio * sigma_s / sigma_t, sigma_s * math.sqrt(rest), sigma_t * math.sqrt(rest)
        )

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t ~ q(x_t | x_0) for the noise `eps` (Ho et al. 2020, eq. 4).

        Args:
            x0, eps: (B, ...) float32.
            t: (B,) integers in 0..T-1.

        Returns:
            (B, ...) float32.
        """
        return self.at(self.signal, t, x0) * x0 + self.at(self.sigma, t, x0) * eps

    def chain(self, x0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield x_0, x_1, ..., drawn step by step from q(x_t | x_{t-1}) (eq. 2): T tensors of the shape of x0."""
        x = x0
        for t in range(self.timesteps):
            x = self.diffuse(x, t - 1, t, noise)
            yield x

    def diffuse(self, x_s: Tensor, s: int, t: int, noise: Noise) -> Tensor:
        """Return x_t ~ q(x_t | x_s) for s < t; s = -1 is the data."""
        scale = self.amplitudes(t)[0] / self.amplitudes(s)[0]
        return scale * x_s + self.posterior(t, s).forward_std * noise()

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0), which is x0 at t = 0. Arguments as in `q_sample`."""
        return self.at(self._of_x0, t, x0) * x0 + self.at(self._of_x_t, t, x0) * x_t

    def at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Return table[t] in the shape (B, 1, ...), which broadcasts with `like`."""
        return table[t].view((-1,) + (1,) * (like.ndim - 1))
