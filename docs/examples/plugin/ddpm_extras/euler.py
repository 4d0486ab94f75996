"""Euler's method on the probability flow ODE."""

import math
from collections.abc import Iterator

from torch import Tensor

from ddpm_cli.api import Denoise, Noise, Pairs, Process, Step


def euler(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise, last_step: str) -> Iterator[Step]:
    """Yield a step for each of `pairs` (Karras et al. 2022, Algorithm 1 without its correction).

    In units of the signal, y = x / signal and sigma = noise / signal, the flow is dy/dsigma = (y - x0) / sigma.
    """
    x0 = None
    for t, t_prev in pairs:
        x0 = denoise(x, t, x0).x0
        signal, sigma = _signal_and_sigma(process, t)
        signal_prev, sigma_prev = _signal_and_sigma(process, t_prev)
        y = x / signal
        slope = (y - x0) / sigma
        x = signal_prev * (y + (sigma_prev - sigma) * slope)
        if t_prev < 0 and last_step == "x0":
            x = x0
        yield Step(t, x, x0)


def _signal_and_sigma(process: Process, t: int) -> tuple[float, float]:
    """Return the signal and sigma of a timestep; those of the data, t = -1, are 1 and 0."""
    power = process.alphas_cumprod[t] if t >= 0 else 1.0
    return math.sqrt(power), math.sqrt((1 - power) / power)
