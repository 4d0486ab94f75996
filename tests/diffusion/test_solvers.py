"""Check samplers on every path: their order of convergence, the moments of Gaussian data, and each other."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ddpm_cli.config import EdmPath, FlowPath
from ddpm_cli.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Estimate, ddim, ddpm, edm, euler, heun
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import timestep_pairs
from tests.conftest import a_sampler
from tests.diffusion.toys import (
    COSINE,
    COVARIANCE,
    LINEAR,
    MEAN,
    Solver,
    all_pairs,
    mixture_denoiser,
    mixture_draws,
    moments_of,
    process_at,
)

PATHS = ["vp", "edm", "flow"]
CHURN = {"s_churn": 30.0, "s_tmin": 0.01, "s_tmax": 1.0, "s_noise": 1.0}
ORDERS: dict[str, tuple[int, Solver]] = {
    "euler": (1, euler),
    "heun": (2, heun),
    "edm": (2, partial(edm, **CHURN | {"s_churn": 0.0})),
    "dpmpp_2m": (2, dpmpp_2m),
    "dpmpp_3m": (3, dpmpp_3m),
    "unipc of order 2": (3, partial(unipc, order=2)),
    "unipc of order 3": (4, partial(unipc, order=3)),
}
"""The deterministic samplers and their orders of convergence."""
RANDOM: dict[str, tuple[int, Solver]] = {
    "ddpm": (1, ddpm),
    "ddim": (1, partial(ddim, eta=1.0)),
    "edm with churn": (2, partial(edm, **CHURN)),
    "dpmpp_2m_sde": (2, partial(dpmpp_2m_sde, eta=1.0)),
    "dpmpp_2m_sde with half the noise": (2, partial(dpmpp_2m_sde, eta=0.5)),
}
"""The samplers that draw noise, and the orders of the distribution of their samples."""


def graded(steps: int) -> Tensor:
    """Return log-SNRs (steps + 1,) from 4 down to -4 whose gaps shrink towards the noise, where solvers start.

    The first steps are of lower order. As short as steps**-2 they do not lower the order of the whole.
    """
    return 4 - 8 * (1 - (1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)) ** 2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str, path: str) -> None:
    """Compare with the exact flow of Gaussian data, which scales x_t - mean by the ratio of standard deviations."""
    order, solve = ORDERS[name]
    mean, variance = 0.3, 0.04

    def error(steps: int) -> float:
        process = process_at(graded(steps), path)

        def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
            signal, sigma = process.amplitudes(t)
            gain = signal * variance / (signal**2 * variance + sigma**2)
            return Estimate(mean + gain * (x_t - signal * mean))

        (signal, sigma), (signal_end, sigma_end) = process.amplitudes(steps), process.amplitudes(0)
        z = torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64)
        x = signal * mean + math.sqrt(signal**2 * variance + sigma**2) * z
        exact = signal_end * mean + math.sqrt(signal_end**2 * variance + sigma_end**2) * z
        *_, last = solve(denoise, x, process, all_pairs(process), lambda: x)
        return float((last.x - exact).abs().max())

    assert math.log2(error(160) / error(320)) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", RANDOM)
def test_order_of_convergence_of_the_distribution(name: str, path: str) -> None:
    """Compare the covariance of samples of Gaussian data, without sampling error, with that of x_t at the end."""
    order, solve = RANDOM[name]

    def error(steps: int) -> float:
        process = process_at(torch.linspace(6, -16, steps + 1, dtype=torch.float64), path)
        _, covariance = moments_of(solve, process, all_pairs(process))
        signal, sigma = process.amplitudes(0)
        return float((covariance - signal**2 * COVARIANCE - sigma**2 * torch.eye(2)).abs().max())

    assert math.log2(error(80) / error(160)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ORDERS)
def test_paths_of_the_same_noise_levels_give_the_same_samples(name: str) -> None:
    """x / signal follows the same equation on all paths with the same sigma / signal."""
    levels = torch.linspace(9, -9, 20, dtype=torch.float64)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = []
    for path in PATHS:
        process = process_at(levels, path)
        x = process.amplitudes(19)[1] * z
        *_, last = ORDERS[name][1](mixture_denoiser(process), x, process, [*all_pairs(process), (0, -1)], lambda: z)
        drawn.append(last.x)
    assert torch.allclose(drawn[0], drawn[1], atol=1e-5)
    assert torch.allclose(drawn[0], drawn[2], atol=1e-5)


PROCESSES = {
    "linear": LINEAR,
    "cosine": COSINE,
    "edm": Process(path_of(EdmPath(timesteps=1000, sigma_min=0.002, sigma_max=80.0, rho=7.0))),
    "flow": Process(path_of(FlowPath(timesteps=1000, shift=1.0))),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=list(PROCESSES))
@pytest.mark.parametrize("name", [*ORDERS, *RANDOM])
def test_moments_of_gaussian_data(name: str, process: Process) -> None:
    """A perfect denoiser gives the right mean and covariance; the error that is left is that of the steps."""
    order, solve = (ORDERS | RANDOM)[name]
    pairs = timestep_pairs(process, a_sampler(steps=300 if order == 1 else 60, spacing="logsnr"))
    mean, covariance = moments_of(solve, process, pairs)
    assert torch.allclose(mean, MEAN, atol=0.006)
    assert torch.allclose(covariance, COVARIANCE, atol=0.013 if name in RANDOM else 0.006)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=list(PROCESSES))
def test_euler_is_ddim_without_noise(process: Process) -> None:
    x = process.amplitudes(999)[1] * torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    pairs = timestep_pairs(process, a_sampler(steps=10))
    ours = [step.x for step in euler(mixture_denoiser(process), x, process, pairs, lambda: x)]
    theirs = [step.x for step in ddim(mixture_denoiser(process), x, process, pairs, lambda: x, eta=0.0)]
    assert torch.equal(torch.stack(ours), torch.stack(theirs))


@pytest.mark.parametrize("solve", [heun, partial(edm, **CHURN | {"s_churn": 0.0})], ids=["heun", "edm"])
def test_heun_on_the_cosine_schedule_evenly_in_time(solve: Solver) -> None:
    """The first step starts at sigma / signal = 20,291. Taken as a mean of two slopes it left a distance of 0.45."""
    pairs = timestep_pairs(COSINE, a_sampler(steps=18, spacing="time"))
    z = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, last = solve(mixture_denoiser(COSINE), z, COSINE, pairs, lambda: z)
    apart = last.x.sort(dim=0).values - mixture_draws(10_000).sort(dim=0).values
    assert float(apart.abs().mean()) < 0.03  # Wasserstein-1 of the coordinates


def algorithm_2(levels: list[float], x: Tensor, noises: list[Tensor], denoise_at: object) -> Tensor:
    """Return the sample of Algorithm 2 of Karras et al. 2022, line by line, for noise levels that end at 0."""
    steps = len(levels) - 1
    for i in range(steps):
        churned = CHURN["s_tmin"] <= levels[i] <= CHURN["s_tmax"]
        gamma = min(CHURN["s_churn"] / steps, math.sqrt(2) - 1) if churned else 0.0
        level = levels[i] + gamma * levels[i]
        if churned:
            x = x + math.sqrt(level**2 - levels[i] ** 2) * 1.007 * noises.pop(0)
        slope = (x - denoise_at(x, level)) / level  # type: ignore[operator]
        moved = x + (levels[i + 1] - level) * slope
        if levels[i + 1] > 0:
            at_end = (moved - denoise_at(moved, levels[i + 1])) / levels[i + 1]  # type: ignore[operator]
            moved = x + (levels[i + 1] - level) * (slope + at_end) / 2
        x = moved
    return x


@pytest.mark.parametrize("path", PATHS)
def test_edm_is_algorithm_2(path: str) -> None:
    """On a grid that also has the raised levels, whose first ones at or above them are the levels themselves."""
    visited = [0.02, 0.1, 0.5, 0.9, 3.0, 20.0]
    gamma = math.sqrt(2) - 1  # 30 / 6 is more
    raised = [(1 + gamma + 1e-12) * level for level in visited if 0.01 <= level <= 1]  # above it despite rounding
    grid = sorted([*visited, *raised])
    process = process_at(-2 * torch.tensor(grid, dtype=torch.float64).log(), path)
    indices = [grid.index(level) for level in reversed(visited)]
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(5)]

    def denoise_at(x: Tensor, level: float) -> Tensor:
        return torch.tanh(x / (1 + level))

    expected = algorithm_2([*reversed(visited), 0.0], 20 * noises[0], noises[1:], denoise_at)

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        return Estimate(denoise_at(x_t / process.amplitudes(t)[0], grid[t]))

    pairs = list(zip(indices, [*indices[1:], -1], strict=True))
    drawn = iter(noises[1:])
    x = process.amplitudes(indices[0])[1] * noises[0]
    *_, last = edm(denoise, x, process, pairs, lambda: next(drawn), **CHURN | {"s_noise": 1.007})
    assert torch.allclose(last.x, expected, rtol=1e-9, atol=1e-9)
    assert next(drawn, None) is None


def test_edm_calls_the_network_at_the_raised_level() -> None:
    """The level at t is raised by 41% to the first timestep that has as much noise, where there is one."""
    calls: list[int] = []

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        calls.append(t)
        return Estimate(x_t / 2)

    pairs = [(999, 500), (500, 100), (100, -1)]
    zeros = torch.zeros(1, 1)
    list(edm(denoise, zeros, LINEAR, pairs, lambda: zeros, s_churn=9.0, s_tmin=0.0, s_tmax=1e6, s_noise=1.0))
    assert (calls[0], calls[1], calls[3]) == (999, 500, 100)
    for raised, t in ((calls[2], 500), (calls[4], 100)):
        wanted = LINEAR.logsnr(t) - math.log(2)
        assert LINEAR.logsnr(raised) <= wanted < LINEAR.logsnr(raised - 1)
    calls.clear()
    list(edm(denoise, zeros, LINEAR, pairs, lambda: zeros, s_churn=9.0, s_tmin=1e3, s_tmax=1e6, s_noise=1.0))
    assert calls == [999, 500, 500, 100, 100]
