"""Compare betas and single steps of DDPM, DDIM and DPM-Solver++ with diffusers' schedulers, in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ddpm_cli.config import Cosine, EdmPath, FlowPath, Linear, Schedule, Sigmoid
from ddpm_cli.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Denoise, Estimate, ddim, ddpm, euler
from ddpm_cli.diffusion.schedules import betas_of, path_of
from ddpm_cli.diffusion.timesteps import Pairs, stride
from tests.diffusion.toys import COSINE, LINEAR, Solver

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


VISITED = [999, 900, 750, 500, 300, 120, 40, 5]


def with_noise_levels(scheduler: Any, process: Process) -> Any:
    """Return `scheduler` set to visit `VISITED` with the noise levels of `process` in float64."""
    scheduler.set_timesteps(len(VISITED))
    scheduler.timesteps = torch.tensor(VISITED)
    levels = [process.amplitudes(t)[1] / process.amplitudes(t)[0] for t in VISITED]
    scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
    return scheduler


def tanh_denoiser(process: Process) -> Denoise:
    def denoise(x: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        return Estimate(torch.tanh(x * (1 + t / 1000)))

    return denoise


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    ("solve", "order", "corrected"),
    [(partial(unipc, order=2), 2, True), (partial(unipc, order=3), 3, True), (dpmpp_3m, 3, False)],
    ids=["unipc-2", "unipc-3", "dpmpp_3m"],
)
def test_unipc(solve: Solver, order: int, corrected: bool, process: Process) -> None:
    """Compare whole trajectories. The predictor of order 3 alone is dpmpp_3m with its whole second derivative."""
    scheduler = UniPCMultistepScheduler(
        1000, solver_order=order, prediction_type="sample", final_sigmas_type="zero", lower_order_final=False
    )
    if not corrected:
        scheduler.disable_corrector = list(range(len(VISITED)))
    with_noise_levels(scheduler, process)
    denoise, theirs = tanh_denoiser(process), X.view(1, 4)
    pairs: Pairs = [*zip(VISITED, [*VISITED[1:], -1], strict=True)]
    for ours, t in zip(solve(denoise, theirs, process, pairs, lambda: X), VISITED[:-1], strict=False):
        theirs = scheduler.step(denoise(theirs, t, None).x0, t, theirs).prev_sample
        assert torch.allclose(ours.x, theirs, rtol=1e-6, atol=1e-7), t


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_sde_dpm_solver_pp(process: Process) -> None:
    scheduler = DPMSolverMultistepScheduler(
        1000,
        algorithm_type="sde-dpmsolver++",
        prediction_type="sample",
        final_sigmas_type="zero",
        lower_order_final=False,
    )
    with_noise_levels(scheduler, process)
    noise, denoise, theirs = X.flip(0).view(1, 4) / 2, tanh_denoiser(process), X.view(1, 4)
    pairs: Pairs = [*zip(VISITED, [*VISITED[1:], -1], strict=True)]
    for ours, t in zip(dpmpp_2m_sde(denoise, theirs, process, pairs, lambda: noise, 1.0), VISITED, strict=True):
        theirs = scheduler.step(denoise(theirs, t, None).x0, t, theirs, variance_noise=noise).prev_sample
        assert torch.allclose(ours.x, theirs, rtol=1e-4, atol=1e-5), t  # theirs is rounded to float32


def test_euler_on_a_flow() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    scheduler.set_timesteps(8)
    process = Process(path_of(FlowPath(timesteps=1000, shift=3.0)))
    sigmas = scheduler.sigmas[:-1].tolist()
    visited = [min(range(1000), key=lambda t, at=at: abs(process.sigmas[t] - at)) for at in sigmas]
    assert [process.sigmas[t] for t in visited] == pytest.approx(sigmas, abs=1e-3)
    scheduler.sigmas = torch.tensor([*(process.sigmas[t] for t in visited), 0.0], dtype=torch.float64)
    denoise, theirs = tanh_denoiser(process), X
    pairs: Pairs = [*zip(visited, [*visited[1:], -1], strict=True)]
    for ours, (t, _), step in zip(
        euler(denoise, X, process, pairs, lambda: X), pairs, scheduler.timesteps, strict=True
    ):
        velocity = (theirs - denoise(theirs, t, None).x0) / process.sigmas[t]
        theirs = scheduler.step(velocity, step, theirs).prev_sample
        assert torch.allclose(ours.x, theirs.double(), rtol=1e-5, atol=1e-6), t


def test_euler_on_the_edm_path() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5)
    scheduler.set_timesteps(18)
    process = Process(path_of(EdmPath(timesteps=18, sigma_min=0.002, sigma_max=80.0, rho=7.0)))
    assert scheduler.sigmas[:-1].flip(0).tolist() == pytest.approx(process.sigmas, rel=1e-5)
    denoise, theirs = tanh_denoiser(process), 80 * X
    pairs: Pairs = [(t, t - 1) for t in range(17, -1, -1)]
    for ours, (t, _), step in zip(
        euler(denoise, theirs, process, pairs, lambda: X), pairs, scheduler.timesteps, strict=True
    ):
        x0 = denoise(theirs, t, None).x0
        theirs = scheduler.step(x0, step, theirs, pred_original_sample=x0).prev_sample
        assert torch.allclose(ours.x, theirs.double(), rtol=1e-4, atol=1e-4), t
