"""Compare samplers with Bayes' rule, with each other, and on data whose optimal denoiser is known."""

import itertools
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_cli.config import Ddim, Ddpm, DpmPp2M, DpmPp2MSde, DpmPp3M, Edm, Euler, Heun, Linear, Sampler, UniPc
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.editing import inpaint
from ddpm_cli.diffusion.multistep import dpmpp_2m
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Denoise, Estimate, ddim, ddpm, heun
from ddpm_cli.diffusion.sampling import threshold
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import Pairs, even_in_logsnr, timestep_pairs
from tests.conftest import a_sampler
from tests.diffusion.toys import (
    CENTRES,
    COSINE,
    COVARIANCE,
    LINEAR,
    MEAN,
    SHARES,
    gaussian_denoiser,
    mixture_denoiser,
    mixture_moments,
    steps_of,
)


def pairs_over(process: Process, steps: int | None) -> Pairs:
    return timestep_pairs(process, a_sampler(steps=steps))


def test_the_last_step_lands_on_x0() -> None:
    for t in (0, 700):
        assert LINEAR.posterior(t, -1)[:3] == (pytest.approx(1), 0, 0)


def test_the_mean_is_equation_11_where_x0_is_not_clipped() -> None:
    eps, x_t, t = 0.4, -0.9, 500
    ac, ac_prev = LINEAR.alphas_cumprod[t], LINEAR.alphas_cumprod[t - 1]
    alpha = ac / ac_prev
    text = (x_t - (1 - alpha) / math.sqrt(1 - ac) * eps) / math.sqrt(alpha)
    a, b, _, _ = LINEAR.posterior(t, t - 1)
    x0 = (x_t - math.sqrt(1 - ac) * eps) / math.sqrt(ac)
    assert a * x0 + b * x_t == pytest.approx(text, rel=1e-9)


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_ddim_with_eta_1_over_all_steps_is_ancestral(process: Process) -> None:
    torch.manual_seed(0)
    x, noises = torch.randn(3, 2, dtype=torch.float64), torch.randn(1000, 3, 2, dtype=torch.float64)

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        return Estimate(torch.tanh(x_t * (1 + t / 1000)))

    pairs = pairs_over(process, None)
    one, two = iter(noises), iter(noises)
    ancestral = ddpm(denoise, x, process, pairs, lambda: next(one))
    implicit = ddim(denoise, x, process, pairs, lambda: next(two), eta=1.0)
    for ours, theirs in zip(ancestral, implicit, strict=True):
        assert ours.t == theirs.t
        assert torch.allclose(ours.x, theirs.x, atol=1e-6)


def test_ddim_at_eta_0_draws_no_noise() -> None:
    def no_noise() -> Tensor:
        raise AssertionError

    x = torch.ones(1, 2)
    steps = list(ddim(lambda x, t, last: Estimate(x / 2), x, LINEAR, pairs_over(LINEAR, 5), no_noise, eta=0.0))
    assert len(steps) == 5


@dataclass(frozen=True)
class Walk:
    """A sampler and the number of timesteps, of 1000, that it visits."""

    kind: str
    steps: int | None

    def __call__(self, denoise: Denoise, process: Process) -> Tensor:
        """Draw 20,000 samples."""
        generator = torch.Generator().manual_seed(0)

        def noise() -> Tensor:
            return torch.randn(20_000, 2, generator=generator, dtype=torch.float64)

        spacing = "logsnr" if self.kind in ("dpmpp_2m", "heun") else "time"
        pairs = timestep_pairs(process, a_sampler(steps=self.steps, spacing=spacing))
        match self.kind:
            case "fixed_small" | "fixed_large":

                def with_variance(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
                    return denoise(x_t, t, last_x0)._replace(variance=self.kind)

                *_, last = ddpm(with_variance, noise(), process, pairs, noise)
            case "eta=0" | "eta=1":
                *_, last = ddim(denoise, noise(), process, pairs, noise, eta=float(self.kind[-1]))
            case "dpmpp_2m":
                *_, last = dpmpp_2m(denoise, noise(), process, pairs, noise)
            case "heun":
                *_, last = heun(denoise, noise(), process, pairs, noise)
        return last.x


WALKS = [
    Walk("fixed_small", None),
    Walk("fixed_small", 250),
    Walk("fixed_large", None),
    Walk("eta=0", 100),
    Walk("eta=0", None),
    Walk("eta=1", None),
    Walk("dpmpp_2m", 25),
    Walk("heun", 50),
]
ALL_STEPS = [walk for walk in WALKS if walk.steps is None]


@pytest.mark.parametrize(
    ("process", "walk"),
    [
        pytest.param(process, walk, id=f"{name}-{walk}", marks=pytest.mark.slow if walk in ALL_STEPS else [])
        for name, process in (("linear", LINEAR), ("cosine", COSINE))
        for walk in WALKS
    ],
)
def test_samplers_reproduce_gaussian_data(process: Process, walk: Walk) -> None:
    x = walk(gaussian_denoiser(process), process)
    assert torch.allclose(x.mean(0), MEAN, atol=0.02)
    assert torch.allclose(x.T.cov(), COVARIANCE, atol=0.02)


@pytest.mark.parametrize(
    "walk", [Walk("fixed_small", 250), Walk("eta=0", 250), Walk("dpmpp_2m", 25), Walk("heun", 50)], ids=str
)
def test_samplers_reproduce_a_mixture(walk: Walk) -> None:
    x = walk(mixture_denoiser(COSINE), COSINE)
    mean, covariance = mixture_moments()
    assert torch.allclose(x.mean(0), mean, atol=0.03)
    assert torch.allclose(x.T.cov(), covariance, atol=0.03)
    nearest = torch.cdist(x, CENTRES).argmin(1)
    assert torch.allclose(nearest.bincount() / len(x), SHARES.float(), atol=0.02)


ORDERS = {
    "eta=0": (1, partial(ddim, eta=0.0)),
    "dpmpp_2m": (2, dpmpp_2m),
    "heun": (2, heun),
}
FINE = 100_000
"""Number of timesteps, large enough that rounding to integers does not affect the measured error."""


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("spacing", ["time", "logsnr"])
def test_solver_has_its_order_of_convergence(name: str, spacing: str) -> None:
    """Compare with the exact flow of Gaussian data, which scales x_t - mean by the ratio of standard deviations.

    The interval stops short of t = 0, because the last step of every solver is of first order.
    """
    order, solve = ORDERS[name]
    ramp = Linear(timesteps=FINE, beta_start=1e-4, beta_end=0.02, rescale=True, zero_terminal_snr=False)
    process = Process(path_of(ramp))
    mean, variance = 0.3, 0.04

    def at(t: int) -> tuple[float, float]:
        signal, sigma = process.amplitudes(t)
        return signal * mean, math.hypot(signal * math.sqrt(variance), sigma)

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        mean_t, std = at(t)
        return Estimate(mean + process.amplitudes(t)[0] * variance / std**2 * (x_t - mean_t))

    start, end = FINE * 9 // 10, FINE // 50
    x = torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64)
    exact = at(end)[0] + (x - at(start)[0]) / at(start)[1] * at(end)[1]

    levels = [process.logsnr(t) for t in range(end, start + 1)]

    def error(steps: int) -> float:
        if spacing == "time":
            visited = torch.linspace(end, start, steps + 1).round().int().tolist()
        else:
            visited = [end + t for t in even_in_logsnr(levels, steps + 1)]
        pairs = list(zip(visited[:0:-1], visited[-2::-1], strict=True))
        *_, last = solve(denoise, x, process, pairs, lambda: x)
        return float((last.x - exact).abs().max())

    errors = [error(steps) for steps in (160, 320, 640)]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.25)


def test_number_of_network_calls_per_step() -> None:
    calls: list[int] = []

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        calls.append(t)
        return Estimate(x_t / 2)

    list(heun(denoise, torch.ones(1), LINEAR, [(999, 500), (500, 0), (0, -1)], lambda: torch.zeros(1)))
    assert calls == [999, 500, 500, 0, 0]
    calls.clear()
    list(dpmpp_2m(denoise, torch.ones(1), LINEAR, [(999, 500), (500, 0), (0, -1)], lambda: torch.zeros(1)))
    assert calls == [999, 500, 0]


@pytest.mark.parametrize(("t", "t_prev"), [(999, 998), (500, 480), (20, 0)])
def test_variances_of_a_stride(t: int, t_prev: int) -> None:
    """fixed_small is the posterior's variance, fixed_large the stride's beta; a learned one interpolates their logs."""
    ac, ac_prev = LINEAR.alphas_cumprod[t], LINEAR.alphas_cumprod[t_prev]
    beta = 1 - ac / ac_prev
    small = beta * (1 - ac_prev) / (1 - ac)
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def variance(kind: str, fraction: Tensor | None = None) -> list[float]:
        """Return the variance of a step whose mean is 0 and whose noise is 1."""
        (step,) = ddpm(lambda *_: Estimate(zeros, fraction, kind), zeros, LINEAR, [(t, t_prev)], lambda: ones)
        return (step.x**2).tolist()

    assert variance("fixed_small") == pytest.approx([small] * 3)
    assert variance("fixed_large") == pytest.approx([beta] * 3)
    fraction = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert variance("learned_range", fraction) == pytest.approx([small, math.sqrt(small * beta), beta])


@pytest.mark.parametrize("kind", [Ddpm, Ddim, Euler, Heun, Edm, DpmPp2M, DpmPp2MSde, DpmPp3M, UniPc])
def test_samplers_with_zero_terminal_snr(kind: type[Sampler]) -> None:
    """With zero_terminal_snr no coefficient is infinite, and samples of Gaussian data keep mean and covariance."""
    ramp = Linear(timesteps=1000, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=True)
    process = Process(path_of(ramp))
    assert process.alphas_cumprod[-1] == 0
    mean, variance = 0.3, 0.04

    alphas_cumprod = torch.tensor(process.alphas_cumprod)

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        ac = alphas_cumprod[t][:, None]
        x0 = mean + ac.sqrt() * variance / (ac * variance + 1 - ac) * (x - ac.sqrt() * mean)
        eps = (x - ac.sqrt() * x0) / (1 - ac).sqrt()
        return ac.sqrt() * eps - (1 - ac).sqrt() * x0

    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(20_000, 1, generator=generator)

    spacing = "time" if kind in (Ddpm, Ddim, Euler) else "logsnr"
    steps = 100 if spacing == "logsnr" else 1000
    sampler = a_sampler(kind, steps=steps, spacing=spacing, thresholding="none")
    *_, last = steps_of(sampler, Denoiser(network, process, "v"), noise(), noise)
    assert float(last.x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(last.x.var()) == pytest.approx(variance, abs=0.004)


def test_self_conditioning_is_used_while_sampling() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(x[:, 0])
        return torch.full_like(x[:, 1:], len(seen) / 10)

    denoiser = Denoiser(network, LINEAR, "x0", self_condition=True)
    list(steps_of(a_sampler(steps=3), denoiser, torch.zeros(1, 1, 2, 2), lambda: torch.zeros(1, 1, 2, 2)))
    assert [float(estimate.mean()) for estimate in seen] == pytest.approx([0, 0.1, 0.2])


def test_self_conditioning_is_used_while_inpainting_and_bounded() -> None:
    seen: list[float] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(float(x[:, 0].mean()))
        return torch.full_like(x[:, 1:], 7.0)

    denoiser = Denoiser(network, LINEAR, "x0", self_condition=True, limit=4.0)
    image, hole = torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    zeros = torch.zeros(1, 1, 2, 2)
    list(inpaint(pairs_over(LINEAR, 2), denoiser, image, hole, 2, zeros, lambda: zeros, "none"))
    assert seen == [0, 4, 4]


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (2, 1, 28, 28), (3, 2)])
def test_dynamic_thresholds_are_percentiles(shape: tuple[int, ...]) -> None:
    """s is the percentile of numpy, which lies between two values."""
    x0 = 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x0[-1] /= 100  # below 1, unchanged
    s = np.percentile(x0.abs().flatten(1).numpy(), 99.5, axis=1).clip(min=1).reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_allclose(threshold(x0, "dynamic").numpy(), x0.numpy().clip(-s, s) / s, rtol=1e-6)


@pytest.mark.parametrize("kind", [Ddpm, Ddim, Euler, Heun, Edm, DpmPp2M, DpmPp2MSde, DpmPp3M, UniPc])
def test_thresholding_bounds_the_samples(kind: type[Sampler]) -> None:
    """Even if the network predicts values far out of range, images end in [-1, 1]: eps follows the clipped x0."""
    denoiser = Denoiser(lambda x, t, y: torch.full_like(x, 50.0), LINEAR, "x0")
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for thresholding in ("clip", "dynamic"):
        sampler = a_sampler(kind, steps=10, thresholding=thresholding)
        *_, last = steps_of(sampler, denoiser, noise, lambda: torch.zeros_like(noise))
        assert last.x.unique().tolist() == pytest.approx([1], abs=1e-5)
    wild = a_sampler(kind, steps=10, thresholding="none")
    *_, last = steps_of(wild, denoiser, noise, lambda: torch.zeros_like(noise))
    assert last.x.min() > 10
