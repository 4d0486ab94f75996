"""Samplers: generators that yield x from the noise at t = T-1 to the data.

All have the signature `sampler(denoise, x, process, pairs, noise)`, followed by their own options. The pairs
(t, t_prev) are explicit, so that steps may skip timesteps; t_prev = -1 is the data. A sampler knows the process by
the amplitudes of x0 and eps in x_t alone, so it works on every path. It uses estimates of x0 only and derives eps from
them, so that clipping x0 affects everything. Coefficients are Python floats computed in double precision. Samplers
that use estimates of earlier steps are in `multistep.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm_cli.config import Ddim, Ddpm, Edm, Euler, Heun, implements
from ddpm_cli.diffusion.denoiser import interpolate_log
from ddpm_cli.diffusion.process import Noise, Process
from ddpm_cli.diffusion.timesteps import LEAST_LOGSNR, Pairs


@dataclass(frozen=True)
class Step:
    """The result of a step from timestep `t`: the less noisy `x` and the estimate `x0`, both (B, C, ...)."""

    t: int
    x: Tensor
    x0: Tensor


class Estimate(NamedTuple):
    """An estimate of x0 and the variance of the reverse process, as in `Denoiser` and `denoiser.Output`."""

    x0: Tensor
    fraction: Tensor | None = None
    variance: str = "fixed_small"

    def std(self, small: float, large: float) -> float | Tensor:
        """Return the standard deviation of a reverse step, between its bounds `small` and `large`."""
        if self.fraction is not None:
            return torch.exp(interpolate_log(self.fraction, math.log(small), math.log(large)))
        return large if self.variance == "fixed_large" else small


class Denoise(Protocol):
    """(x_t, t, last estimate of x0) -> estimate of x0."""

    def __call__(self, x_t: Tensor, t: int, last_x0: Tensor | None, /) -> Estimate: ...


@implements(Ddpm)
def ddpm(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2)."""
    x0 = None
    for t, t_prev in pairs:
        step = ancestral_step(denoise, x, process, t, t_prev, noise, x0)
        x, x0 = step.x, step.x0
        yield step


def ancestral_step(
    denoise: Denoise, x: Tensor, process: Process, t: int, t_prev: int, noise: Noise, last_x0: Tensor | None
) -> Step:
    """Draw x_prev from p(x_prev | x_t)."""
    estimate = denoise(x, t, last_x0)
    posterior = process.posterior(t, t_prev)
    x = posterior.of_x0 * estimate.x0 + posterior.of_x_t * x
    if t_prev >= 0:
        x = x + estimate.std(posterior.std, posterior.forward_std) * noise()
    return Step(t, x, estimate.x0)


@implements(Ddim)
def ddim(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise, eta: float) -> Iterator[Step]:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16): deterministic at eta 0, ancestral at 1."""
    x0 = None
    for t, t_prev in pairs:
        x0 = denoise(x, t, x0).x0
        std = eta * process.posterior(t, t_prev).std
        signal, sigma = process.amplitudes(t_prev)
        x = signal * x0 + math.sqrt(max(0.0, sigma**2 - std**2)) * _eps(process, x, x0, t)
        if std > 0:
            x = x + std * noise()
        yield Step(t, x, x0)


@implements(Euler)
def euler(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise) -> Iterator[Step]:
    """Euler's method on the probability flow ODE d(x / signal) = eps d(sigma / signal), first order.

    On every path this is DDIM without noise, with the same bits: the step from x = signal x0 + sigma eps to
    signal_prev x0 + sigma_prev eps is linear in sigma / signal. On a flow it is x + (sigma_prev - sigma) v with the
    velocity v = eps - x0, Euler's method in time.
    """
    yield from ddim(denoise, x, process, pairs, noise, eta=0.0)


@implements(Heun)
def heun(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise) -> Iterator[Step]:
    """Heun's method on the probability flow ODE d(x / signal) = eps d(sigma / signal), second order.

    Karras et al. 2022 (arXiv:2206.00364), Algorithm 1: an Euler step, which is a DDIM step, is corrected by the mean
    of eps at its start and at its end. This takes two network calls a step. The last step to the data, and steps
    from a timestep whose log-SNR is below `LEAST_LOGSNR`, are Euler steps.
    """
    x0 = None
    for t, t_prev in pairs:
        x, x0 = _heun_step(denoise, x, process, t, t_prev, x0)
        yield Step(t, x, x0)


@implements(Edm)
def edm(
    denoise: Denoise,
    x: Tensor,
    process: Process,
    pairs: Pairs,
    noise: Noise,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> Iterator[Step]:
    """Heun's method with churn (Karras et al. 2022, Algorithm 2); `heun` is the case s_churn = 0.

    Before a step from a noise level sigma / signal in [s_tmin, s_tmax], noise raises the level by the factor
    1 + gamma, gamma = min(s_churn / steps, sqrt(2) - 1). The network knows the timesteps of the process only, so the
    noise is added up to exactly the first timestep whose level is as high, or the last one that has signal. With
    T = 1000 it is 2% higher on the schedule edm, and up to a tenth on flow and cosine. On the linear schedule it is up
    to a third higher in the last steps, where its levels lie far apart. Where that is the timestep itself, as at T-1,
    no noise is added.
    """
    gamma = min(s_churn / len(pairs), math.sqrt(2) - 1)
    x0 = None
    for t, t_prev in pairs:
        raised = t
        if gamma > 0 and s_tmin <= math.exp(-process.logsnr(t) / 2) <= s_tmax:
            raised = _raised(process, t, process.logsnr(t) - 2 * math.log1p(gamma))
        if raised > t:
            x = process.diffuse(x, t, raised, lambda: s_noise * noise())
        x, x0 = _heun_step(denoise, x, process, raised, t_prev, x0)
        yield Step(t, x, x0)


def _raised(process: Process, t: int, logsnr: float) -> int:
    """Return the first timestep from t on whose log-SNR is at most `logsnr`, or the last one above `LEAST_LOGSNR`."""
    last = t
    for later in range(t, process.timesteps):
        if process.logsnr(later) < LEAST_LOGSNR:
            break
        last = later
        if process.logsnr(later) <= logsnr:
            break
    return last


def _heun_step(
    denoise: Denoise, x: Tensor, process: Process, t: int, t_prev: int, last_x0: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return x at t_prev, and the last estimate of x0.

    Close to pure noise the ODE has huge values of sigma / signal, over which a mean of two slopes is no approximation,
    so the step is Euler's there.
    """
    x0 = denoise(x, t, last_x0).x0
    signal, sigma = process.amplitudes(t)
    signal_prev, sigma_prev = process.amplitudes(t_prev)
    eps = _eps(process, x, x0, t)
    x = signal_prev * x0 + sigma_prev * eps
    if t_prev >= 0 and process.logsnr(t) >= LEAST_LOGSNR:
        x0 = denoise(x, t_prev, x0).x0
        change = _eps(process, x, x0, t_prev) - eps
        x = x + signal_prev * (sigma_prev / signal_prev - sigma / signal) / 2 * change
    return x, x0


def _eps(process: Process, x_t: Tensor, x0: Tensor, t: int) -> Tensor:
    """Return the noise in x_t for an estimate of x0."""
    signal, sigma = process.amplitudes(t)
    return (x_t - signal * x0) / sigma
