"""Samplers against Bayes' rule, against each other and on data whose perfect denoiser is known."""

import math

import pytest
import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Estimate, ddim, ddpm, posterior
from ddpm_cli.diffusion.sampling import sample
from ddpm_cli.diffusion.schedules import betas_of
from ddpm_cli.diffusion.timesteps import Pairs, pairs_of
from ddpm_cli.options import Cosine, Ddim, Ddpm, DpmPp2M, Heun, Linear, Sampler
from tests.conftest import a_sampler

LINEAR = Process(
    betas_of(Linear(timesteps=1000, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=False))
)
COSINE = Process(betas_of(Cosine(timesteps=1000, s=0.008, max_beta=0.999, zero_terminal_snr=False)))


def pairs_over(process: Process, steps: int | None) -> Pairs:
    return pairs_of(a_sampler(steps=steps), process)


@pytest.mark.parametrize(("t", "t_prev"), [(999, 998), (500, 499), (1, 0), (999, 979), (520, 13)])
def test_posterior_is_bayes_rule(t: int, t_prev: int) -> None:
    """q(x_prev | x_t, x0) is proportional to q(x_t | x_prev) q(x_prev | x0), two Gaussians in x_prev."""
    ac, ac_prev = LINEAR.alphas_cumprod[t], LINEAR.alphas_cumprod[t_prev]
    alpha = ac / ac_prev
    x0, x_t = 0.3, -1.2
    precision = alpha / (1 - alpha) + 1 / (1 - ac_prev)
    mean = (math.sqrt(alpha) * x_t / (1 - alpha) + math.sqrt(ac_prev) * x0 / (1 - ac_prev)) / precision
    a, b, std = posterior(LINEAR, t, t_prev)
    assert a * x0 + b * x_t == pytest.approx(mean, rel=1e-9)
    assert std**2 == pytest.approx(1 / precision, rel=1e-9)


def test_the_last_step_lands_on_x0() -> None:
    assert posterior(LINEAR, 0, -1) == (pytest.approx(1), 0, 0)
    assert posterior(LINEAR, 700, -1) == (pytest.approx(1), 0, 0)


def test_the_mean_is_equation_11_where_x0_is_not_clipped() -> None:
    eps, x_t, t = 0.4, -0.9, 500
    ac, ac_prev = LINEAR.alphas_cumprod[t], LINEAR.alphas_cumprod[t - 1]
    alpha = ac / ac_prev
    text = (x_t - (1 - alpha) / math.sqrt(1 - ac) * eps) / math.sqrt(alpha)
    a, b, _ = posterior(LINEAR, t, t - 1)
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


MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.10]], dtype=torch.float64)


def gaussian_denoiser(process: Process):
    """E[x0 | x_t] where x0 ~ N(MEAN, COVARIANCE): the best that any network could learn."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        ac = process.alphas_cumprod[t]
        total = ac * COVARIANCE + (1 - ac) * torch.eye(2, dtype=torch.float64)
        gain = math.sqrt(ac) * COVARIANCE @ torch.linalg.inv(total)
        return Estimate(MEAN + (x_t - math.sqrt(ac) * MEAN) @ gain.T)

    return denoise


@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddpm", None), ("ddpm", 250), ("eta=0", 100), ("eta=0", None), ("eta=1", None)]
)
@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_gaussian_data_come_back_with_their_mean_and_covariance(
    process: Process, sampler: str, steps: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(20_000, 2, generator=generator, dtype=torch.float64)

    pairs, denoise = pairs_over(process, steps), gaussian_denoiser(process)
    if sampler == "ddpm":
        *_, last = ddpm(denoise, noise(), process, pairs, noise)
    else:
        *_, last = ddim(denoise, noise(), process, pairs, noise, eta=float(sampler[-1]))
    assert torch.allclose(last.x.mean(0), MEAN, atol=0.02)
    assert torch.allclose(last.x.T.cov(), COVARIANCE, atol=0.02)


def test_self_conditioning_is_used_while_sampling() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(x[:, 0])
        return torch.full_like(x[:, 1:], len(seen) / 10)

    denoiser = Denoiser(network, LINEAR, "x0", self_condition=True)
    list(sample(a_sampler(steps=3), denoiser, torch.zeros(1, 1, 2, 2), lambda: torch.zeros(1, 1, 2, 2)))
    assert [float(estimate.mean()) for estimate in seen] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("kind", [Ddpm, Ddim, DpmPp2M, Heun])
def test_clipping_reaches_x(kind: type[Sampler]) -> None:
    """A network far out of range: the image still ends in [-1, 1], for eps is derived from the clipped x0."""
    denoiser = Denoiser(lambda x, t, y: torch.full_like(x, 50.0), LINEAR, "x0")
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for thresholding in ("clip", "dynamic"):
        sampler = a_sampler(kind, steps=10, thresholding=thresholding)
        *_, last = sample(sampler, denoiser, noise, lambda: torch.zeros_like(noise))
        assert last.x.unique().tolist() == pytest.approx([1], abs=1e-5)
    wild = a_sampler(kind, steps=10, thresholding="none")
    *_, last = sample(wild, denoiser, noise, lambda: torch.zeros_like(noise))
    assert last.x.min() > 10
