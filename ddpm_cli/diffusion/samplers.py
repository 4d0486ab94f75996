"""Samplers: generators that walk x from t = T-1 to the image.

Each takes explicit (t, t_prev) pairs, so that steps may skip timesteps; t_prev = -1 is the image, where
alphas_cumprod is 1. A sampler asks only for estimates of x0 and derives eps from them, so that clipping x0
reaches everything. Its coefficients are Python floats from the float64 table.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.options import Ddim, Ddpm, Sampler


@dataclass(frozen=True)
class Step:
    """After a step from timestep `t`: the less noisy `x` and the estimate `x0`, both (B, C, H, W)."""

    t: int
    x: Tensor
    x0: Tensor


class Denoise(Protocol):
    """(x_t, t, last estimate of x0) -> estimate of x0."""

    def __call__(self, x_t: Tensor, t: int, last_x0: Tensor | None, /) -> Tensor: ...


Noise = Callable[[], Tensor]
"""Standard normal noise of x's shape, anew at each call."""


def timestep_pairs(timesteps: int, steps: int | None) -> list[tuple[int, int]]:
    """`steps` pairs (t, t_prev), evenly spaced from T-1 down to 0, the last (t, -1).

    None: all T. One step goes from T-1 straight to the image.
    """
    count = timesteps if steps is None else steps
    spaced = np.linspace(timesteps - 1, 0, count).round().astype(int).tolist()
    return list(zip(spaced, [*spaced[1:], -1], strict=True))


def posterior(process: Process, t: int, t_prev: int) -> tuple[float, float, float]:
    """The coefficients of q(x_prev | x_t, x0) = N(a x0 + b x_t, c**2): (a, b, c).

    Ho et al. 2020, eq. 6 and 7, with the beta of the whole stride from t_prev to t.
    """
    ac, ac_prev = _alphas_cumprod(process, t), _alphas_cumprod(process, t_prev)
    alpha = ac / ac_prev
    a = math.sqrt(ac_prev) * (1 - alpha) / (1 - ac)
    b = math.sqrt(alpha) * (1 - ac_prev) / (1 - ac)
    return a, b, math.sqrt((1 - alpha) * (1 - ac_prev) / (1 - ac))


def ddpm(
    denoise: Denoise, x: Tensor, process: Process, pairs: list[tuple[int, int]], noise: Noise
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), variance the posterior's."""
    x0 = None
    for t, t_prev in pairs:
        x0 = denoise(x, t, x0)
        a, b, std = posterior(process, t, t_prev)
        x = a * x0 + b * x
        if t_prev >= 0:
            x = x + std * noise()
        yield Step(t, x, x0)


def ddim(
    denoise: Denoise, x: Tensor, process: Process, pairs: list[tuple[int, int]], noise: Noise, eta: float
) -> Iterator[Step]:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16): deterministic at eta 0, ancestral at 1."""
    x0 = None
    for t, t_prev in pairs:
        x0 = denoise(x, t, x0)
        ac, ac_prev = _alphas_cumprod(process, t), _alphas_cumprod(process, t_prev)
        eps = (x - math.sqrt(ac) * x0) / math.sqrt(1 - ac)
        std = eta * posterior(process, t, t_prev)[2]
        x = math.sqrt(ac_prev) * x0 + math.sqrt(max(0.0, 1 - ac_prev - std**2)) * eps
        if std > 0:
            x = x + std * noise()
        yield Step(t, x, x0)


@torch.no_grad()
def sample(sampler: Sampler, denoiser: Denoiser, x: Tensor, noise: Noise) -> Iterator[Step]:
    """Walk `x` ~ N(0, 1), (B, C, H, W), to images as `sampler` says: a `Step` per call of the network."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Tensor:
        at = torch.full((len(x_t),), t, device=x_t.device)
        return denoiser.x0(x_t, at, last_x0 if denoiser.self_condition else None, sampler.clip)

    pairs = timestep_pairs(denoiser.process.timesteps, sampler.steps)
    match sampler:
        case Ddpm():
            yield from ddpm(denoise, x, denoiser.process, pairs, noise)
        case Ddim(eta=eta):
            yield from ddim(denoise, x, denoiser.process, pairs, noise, eta)


def _alphas_cumprod(process: Process, t: int) -> float:
    return 1.0 if t < 0 else process.alphas_cumprod[t]
