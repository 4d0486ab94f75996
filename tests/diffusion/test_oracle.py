"""Compare betas and single steps of DDPM, DDIM and DPM-Solver++ with diffusers' schedulers, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from ddpm_cli.config import Cosine, Linear, Schedule, Sigmoid
from ddpm_cli.diffusion.multistep import dpmpp_2m
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Estimate, ddim, ddpm
from ddpm_cli.diffusion.schedules import betas_of
from ddpm_cli.diffusion.timesteps import Pairs, stride
from tests.diffusion.toys import COSINE, LINEAR

RAMP = {"timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "rescale": False, "zero_terminal_snr": False}
X = torch.tensor([-1.3, -0.2, 0.4, 2.1], dtype=torch.float64)
EPS = torch.tensor([0.5, -1.1, 0.3, 0.9], dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Linear(**RAMP), {"beta_schedule": "linear"}),
        (Sigmoid(**RAMP), {"beta_schedule": "sigmoid"}),
        (
            Cosine(timesteps=1000, s=0.008, max_beta=0.999, zero_terminal_snr=False),
            {"beta_schedule": "squaredcos_cap_v2"},
        ),
    ],
    ids=["linear", "sigmoid", "cosine"],
)
def test_betas(ours: Schedule, theirs: dict[str, str]) -> None:
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, **theirs)
    assert torch.allclose(betas_of(ours).float(), scheduler.betas, rtol=1e-5, atol=1e-7)


def test_zero_terminal_snr() -> None:
    ours = betas_of(Linear(**RAMP | {"zero_terminal_snr": True}))
    scheduler = DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=True)
    assert torch.allclose(ours.float(), scheduler.betas, rtol=1e-3, atol=1e-6)
    assert ours[-1] == 1


def in_float64(scheduler: Any, process: Process) -> Any:
    """Return `scheduler` with the float64 tables of `process` in place of its own float32 tables."""
    scheduler.alphas_cumprod = torch.tensor(process.alphas_cumprod, dtype=torch.float64)
    before = torch.cat([torch.ones(1, dtype=torch.float64), scheduler.alphas_cumprod[:-1]])
    scheduler.alphas = scheduler.alphas_cumprod / before
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.final_alpha_cumprod = scheduler.one
    scheduler.alpha_t = scheduler.alphas_cumprod.sqrt()
    scheduler.sigma_t = (1 - scheduler.alphas_cumprod).sqrt()
    return scheduler


def x0_of(process: Process, t: int, x: Tensor, eps: Tensor = EPS) -> Tensor:
    ac = process.alphas_cumprod[t]
    return (x - (1 - ac) ** 0.5 * eps) / ac**0.5


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Tensor]:
    """Return the noise that diffusers is patched to draw as well."""
    fixed = torch.tensor([0.2, -0.7, 1.5, -0.1], dtype=torch.float64)
    for module in ("scheduling_ddpm", "scheduling_ddim"):
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: fixed)
    return lambda: fixed


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("at", [0, 25, 48, 49])
def test_ddpm(process: Process, variance: str, at: int, noise: Callable[[], Tensor]) -> None:
    """Check the first, a middle and the last of 50 steps."""
    visited = stride(1000, 50)[::-1]
    scheduler = in_float64(DDPMScheduler(1000, variance_type=variance, clip_sample=False), process)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == visited
    t, t_prev = [*zip(visited, [*visited[1:], -1], strict=True)][at]
    theirs = scheduler.step(EPS.view(1, 4), t, X.view(1, 4)).prev_sample[0]

    def denoise(x: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        return Estimate(x0_of(process, t, x), variance=variance)

    (step,) = ddpm(denoise, X, process, [(t, t_prev)], noise)
    assert torch.allclose(step.x, theirs, rtol=1e-5, atol=1e-9)


def test_ddpm_with_a_learned_variance(noise: Callable[[], Tensor]) -> None:
    fraction = torch.tensor([0.0, 0.3, 0.9, 1.2], dtype=torch.float64)
    scheduler = in_float64(DDPMScheduler(1000, variance_type="learned_range", clip_sample=False), LINEAR)
    for t in (999, 500, 1):
        output = torch.cat([EPS, 2 * fraction - 1]).view(1, 8)
        theirs = scheduler.step(output, t, X.view(1, 4)).prev_sample
        estimate = Estimate(x0_of(LINEAR, t, X), fraction, "learned_range")
        (step,) = ddpm(lambda *_, estimate=estimate: estimate, X, LINEAR, [(t, t - 1)], noise)
        assert torch.allclose(step.x, theirs[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("at", [0, 25, 49])
def test_ddim(process: Process, eta: float, at: int, noise: Callable[[], Tensor]) -> None:
    visited = stride(1000, 50)[::-1]
    scheduler = in_float64(DDIMScheduler(1000, clip_sample=False), process)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == visited
    t, t_prev = [*zip(visited, [*visited[1:], -1], strict=True)][at]
    theirs = scheduler.step(EPS, t, X, eta=eta).prev_sample
    (step,) = ddim(lambda x, t, last: Estimate(x0_of(process, t, x)), X, process, [(t, t_prev)], noise, eta)
    if t_prev >= 0:
        assert torch.allclose(step.x, theirs, rtol=1e-5, atol=1e-9)
    else:  # the variance of diffusers' last step is 0, so eta > 0 adds no noise either
        assert torch.allclose(step.x, x0_of(process, t, X), rtol=1e-9)
        assert torch.allclose(step.x, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_dpm_solver_pp_from_the_first_step_to_the_last(process: Process) -> None:
    """Check every step of a whole trajectory; each starts from the previous output of diffusers."""
    visited = [999, 900, 750, 500, 300, 120, 40, 5]
    scheduler = DPMSolverMultistepScheduler(
        1000, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )
    in_float64(scheduler, process)
    scheduler.set_timesteps(timesteps=visited)
    ac = scheduler.alphas_cumprod[torch.tensor(visited)]
    scheduler.sigmas = torch.cat([((1 - ac) / ac).sqrt(), torch.zeros(1, dtype=torch.float64)])
    pairs: Pairs = [*zip(visited, [*visited[1:], -1], strict=True)]

    def eps_at(x: Tensor, t: int) -> Tensor:
        return torch.tanh(x * (1 + t / 1000))

    def denoise(x: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        return Estimate(x0_of(process, t, x, eps_at(x, t)))

    theirs = X
    for ours, t in zip(dpmpp_2m(denoise, X, process, pairs, lambda: X), visited, strict=True):
        theirs = scheduler.step(eps_at(theirs, t), t, theirs).prev_sample
        assert torch.allclose(ours.x, theirs, rtol=1e-5, atol=1e-8), t
