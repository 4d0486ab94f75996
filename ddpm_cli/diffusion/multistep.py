"""Multistep samplers: they use estimates of x0 of earlier steps, with the signature of `samplers.py`.

All work in lambda = log(signal / sigma), half the log-SNR, in which a step has the same coefficients on every path.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ddpm_cli.diffusion.process import Noise, Process
from ddpm_cli.diffusion.samplers import Denoise, Step
from ddpm_cli.diffusion.timesteps import Pairs

ROOTS, GAUSS = (values.tolist() for values in np.polynomial.legendre.leggauss(24))
"""Points in [-1, 1] and weights of Gaussian quadrature, exact in double precision for what it is used for."""


def dpmpp_2m(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, Algorithm 2): second order, one network call a step."""
    yield from dpmpp_2m_sde(denoise, x, process, pairs, noise, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise, eta: float
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, section 5), one network call a step.

    It solves the reverse SDE with eta times its noise, so eta 1 is their sampler and 0 is `dpmpp_2m`; between them it
    is k-diffusion's sample_dpmpp_2m_sde. The distribution of samples is of second order for every eta.

    The first step, the last step to the data, and a step from a timestep without signal are of first order, because
    their log-SNR is not finite.
    """
    last_x0: Tensor | None = None
    h_last = math.inf
    for t, t_prev in pairs:
        x0 = denoise(x, t, last_x0).x0
        signal, sigma = process.amplitudes(t)
        signal_prev, sigma_prev = process.amplitudes(t_prev)
        shrink = sigma_prev * signal / (sigma * signal_prev)  # exp(-h), h the step in lambda = log(signal / sigma)
        h = -math.log(shrink) if shrink > 0 else math.inf
        towards = x0
        if last_x0 is not None and math.isfinite(h) and math.isfinite(h_last):
            towards = x0 + h / (2 * h_last) * (x0 - last_x0)
        x = sigma_prev / sigma * shrink**eta * x + signal_prev * (1 - shrink ** (1 + eta)) * towards
        std = sigma_prev * math.sqrt(1 - shrink ** (2 * eta))
        if std > 0:
            x = x + std * noise()
        last_x0, h_last = x0, h
        yield Step(t, x, x0)


def dpmpp_3m(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(3M) (Lu et al. 2022, arXiv:2211.01095): third order, one network call a step.

    x0 is taken as the parabola in lambda through the last three estimates. The code of Lu et al., and after it
    diffusers and k-diffusion, halve its second derivative, which leaves an error of second order; here it is whole.
    """
    yield from _multistep(denoise, x, process, pairs, 3, correct=False)


def unipc(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise, order: int) -> Iterator[Step]:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867) of order `order` + 1 in steps, one network call a step.

    The variant B2(h) for estimates of x0. Each step is predicted from the last `order` estimates. When the network has
    been called at its end, it is corrected with the new estimate, and the next step starts from there.
    """
    yield from _multistep(denoise, x, process, pairs, order, correct=True)


class Node(NamedTuple):
    """An estimate of x0 at lambda = log(signal / sigma)."""

    at: float
    x0: Tensor


def _multistep(
    denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, order: int, correct: bool
) -> Iterator[Step]:
    """Solve the probability flow ODE with a polynomial through the last `order` estimates of x0.

    The first steps have fewer. Estimates at a timestep without signal, whose lambda is infinite, are used once.
    """
    nodes: list[Node] = []
    start, t_start, x0 = x, 0, None
    for t, t_prev in pairs:
        x0 = denoise(x, t, x0).x0
        node = Node(process.logsnr(t) / 2, x0)
        if correct and nodes:
            x = _integrate(process, start, t_start, t, [node, *nodes])
        start, t_start = x, t
        nodes = [node, *nodes][:order]
        x = _integrate(process, x, t, t_prev, nodes)
        if math.isinf(node.at):
            nodes = []
        yield Step(t, x, x0)


def _integrate(process: Process, x: Tensor, t: int, t_prev: int, nodes: Sequence[Node]) -> Tensor:
    """Return x at t_prev if x0 is the polynomial in lambda through `nodes`.

    It is the exact solution sigma_prev / sigma x + signal_prev integral of exp(lambda - lambda_prev) x0 d lambda (Lu et
    al. 2022, arXiv:2211.01095, eq. 9). Where lambda is infinite, x0 is that of the first node.
    """
    sigma = process.amplitudes(t)[1]
    signal_prev, sigma_prev = process.amplitudes(t_prev)
    h = process.logsnr(t_prev) / 2 - process.logsnr(t) / 2 if t_prev >= 0 else math.inf
    weights = [1.0] if math.isinf(h) else _weights([node.at - process.logsnr(t) / 2 for node in nodes], h)
    x = sigma_prev / sigma * x
    for weight, node in zip(weights, nodes, strict=False):
        x = x + signal_prev * weight * node.x0
    return x


def _weights(offsets: Sequence[float], h: float) -> list[float]:
    """Return the integrals of exp(u - h) times the Lagrange polynomials of `offsets` for u from 0 to h.

    A line is replaced by its value in the middle, the choice B2(h) of Zhao et al. 2023 and `midpoint` of DPM-Solver++.
    """
    if len(offsets) <= 2:
        points, factors = [h / 2], [-math.expm1(-h)]
    else:
        points = [h * (1 + root) / 2 for root in ROOTS]
        factors = [h / 2 * weight * math.exp(point - h) for point, weight in zip(points, GAUSS, strict=True)]

    def lagrange(k: int, u: float) -> float:
        return math.prod((u - own) / (offsets[k] - own) for i, own in enumerate(offsets) if i != k)

    return [
        sum(factor * lagrange(k, point) for point, factor in zip(points, factors, strict=True))
        for k in range(len(offsets))
    ]
