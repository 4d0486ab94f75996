"""Compare consistency tuning and its sampler with Gaussian data, whose consistency function is known."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ddpm_cli.config import Consistency, EdmPath, FlowPath
from ddpm_cli.diffusion.consistency import consistency, ect, lower_timestep, stage
from ddpm_cli.diffusion.denoiser import Denoiser, Network
from ddpm_cli.diffusion.objective import Objective, unweighted
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Estimate
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import Pairs, timestep_pairs
from ddpm_cli.models.layers import RepeatableDropout
from tests.diffusion.toys import COSINE, LINEAR

EDM = Process(path_of(EdmPath(timesteps=1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)))
FLOW = Process(path_of(FlowPath(timesteps=1000, shift=1.0)))
STD, MEAN = 0.4, 0.3
"""Of Gaussian data, whose consistency function scales the distance from the mean."""


def exact_scale(process: Process, t: Tensor) -> Tensor:
    """Return the factor (B, 1) of x_t of data with mean 0: the ODE keeps the quantile of x_t among all x_t."""
    return (STD / ((process.signal[t] * STD) ** 2 + process.sigma[t] ** 2).sqrt())[:, None]


def pairs_to_level(process: Process, steps: int, sigma: float, start: int | None = None) -> Pairs:
    sampler = Consistency(steps=steps, sections=None, spacing="time", thresholding="none", mid_sigma=sigma)
    return timestep_pairs(process, sampler, start)


def objective_of(process: Process, f: Network, **changes: object) -> Objective:
    """Return the objective of a network that estimates x0 as f(x_t, t, None)."""
    options = {"q": 2.0, "stages": 8, "k": 8.0, "b": 1.0, "c": None, "weight": "level", **changes}
    return Objective(Denoiser(f, process, "x0"), partial(ect, **options), unweighted)


@pytest.mark.parametrize("process", [EDM, LINEAR, COSINE, FLOW], ids=["edm", "linear", "cosine", "flow"])
@pytest.mark.parametrize(("q", "a"), [(2.0, 1), (2.0, 4), (4.0, 2), (256.0, 1)])
def test_lower_timestep_is_the_nearest_to_the_mapping_function(process: Process, q: float, a: int) -> None:
    levels = [math.inf if s == 0 else b / s for s, b in zip(process.signals, process.sigmas, strict=True)]
    timesteps = torch.arange(process.timesteps)
    found = lower_timestep(process, timesteps, torch.tensor(float(a)), q, 8.0, 1.0)
    assert (found < timesteps).all()
    assert (found >= -1).all()
    for t in range(0, process.timesteps, 7):
        level = levels[t]
        if math.isinf(level):
            continue
        wanted = max(0.0, level * (1 - (1 + 8 / (1 + math.exp(level))) / q**a))
        r = int(found[t])
        error = abs((0 if r < 0 else levels[r]) - wanted)
        best = min(abs(value - wanted) for value in [0.0, *levels[:t]])
        assert error <= best + 1e-5 * level


def test_the_last_timestep_of_a_flow_is_compared_with_a_finite_level() -> None:
    assert lower_timestep(FLOW, torch.tensor([999]), torch.tensor(1.0), 2.0, 8.0, 1.0).tolist() == [998]


def test_stages_are_equal_parts_of_the_run() -> None:
    shares = [0.0, 0.124, 0.125, 0.5, 0.99, 1.0]
    assert [int(stage(torch.tensor(share), 8)) for share in shares] == [1, 1, 2, 5, 8, 8]


def test_progress_halves_the_distance_of_the_levels() -> None:
    """Per example the loss is the weight 1 / (t - r) times (t - r)**2 for f(x_t) = the level of t."""

    def level(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return EDM.sigma[t][:, None].expand_as(x)

    objective = objective_of(EDM, level, weight="gap")
    t, zeros = torch.tensor([950]), torch.zeros(1, 2)
    first, second = (float(objective(zeros, t, zeros, progress=torch.tensor(share))) for share in (0.0, 0.125))
    assert first == pytest.approx(EDM.sigmas[950] / 2, rel=0.01)
    assert second == pytest.approx(EDM.sigmas[950] / 4, rel=0.02)


def test_the_lower_end_is_the_data_themselves() -> None:
    objective = objective_of(EDM, lambda x, t, y: torch.full_like(x, 3.0))
    x0, t = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    assert float(objective(x0, t, torch.ones(1, 2))) == pytest.approx((4 + 1) / 2 / 0.002, rel=1e-4)
    huber = objective_of(EDM, lambda x, t, y: torch.full_like(x, 3.0), c=0.5, weight="gap")
    expected = (math.sqrt(2.5 + 0.25) - 0.5) / 0.002
    assert float(huber(x0, t, torch.ones(1, 2))) == pytest.approx(expected, rel=1e-4)


def test_edm_weights_are_those_of_edm() -> None:
    objective = objective_of(EDM, lambda x, t, y: torch.full_like(x, 3.0), weight="edm")
    loss = float(objective(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2)))
    assert loss == pytest.approx(9 * (0.002**2 + 0.5**2) / (0.002 * 0.5) ** 2, rel=1e-4)


def test_gradient_flows_through_the_upper_level_only() -> None:
    scale = torch.tensor(0.7, requires_grad=True)
    objective = objective_of(EDM, lambda x, t, y: scale * x)
    torch.manual_seed(0)
    x0, eps, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([300, 500, 700, 900])
    objective(x0, t, eps).sum().backward()  # type: ignore[no-untyped-call]
    r = lower_timestep(EDM, t, torch.tensor(1.0), 2.0, 8.0, 1.0)
    x_t, level = EDM.q_sample(x0, t, eps), EDM.sigma[t]
    target = torch.where((r < 0)[:, None], x0, 0.7 * EDM.q_sample(x0, r.clamp(min=0), eps))
    by_hand = (2 * (0.7 * x_t - target) * x_t).mean(dim=1) / level
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(by_hand.sum()), rel=1e-4)


@pytest.mark.parametrize("process", [EDM, COSINE, FLOW], ids=["edm", "cosine", "flow"])
def test_the_exact_consistency_function_is_the_limit(process: Process) -> None:
    """Its mean gradient vanishes with the distance of the levels to a higher order; that of E[x0 | x_t] does not.

    Four examples have the moments of the data and of the noise.
    """
    x0, eps = STD * torch.tensor([[1.0], [1], [-1], [-1]]), torch.tensor([[1.0], [-1], [1], [-1]])
    t = torch.full((4,), min(range(process.timesteps), key=lambda t: abs(process.logsnr(t))))
    level = float(process.sigma[t[0]] / process.signal[t[0]])

    def gradient(f: Network, gap: int) -> float:
        scale = torch.tensor(1.0, requires_grad=True)
        r = t - gap
        q = 1 / (1 - float(process.sigma[r[0]] / process.signal[r[0]]) / level)
        objective = objective_of(process, lambda x, at, y: scale * f(x, at, y), q=q, k=0.0, weight="gap")
        objective(x0, t, eps).mean().backward()  # type: ignore[no-untyped-call]
        assert scale.grad is not None
        return float(scale.grad)

    def exact(x: Tensor, at: Tensor, y: Tensor | None) -> Tensor:
        return exact_scale(process, at) * x

    def posterior_mean(x: Tensor, at: Tensor, y: Tensor | None) -> Tensor:
        return exact_scale(process, at) ** 2 * process.signal[at][:, None] * x

    wide, narrow = 8, 2
    assert gradient(exact, narrow) == pytest.approx(gradient(exact, wide) * narrow / wide, rel=0.15, abs=1e-5)
    assert abs(gradient(posterior_mean, narrow)) > 10 * abs(gradient(exact, narrow))
    assert gradient(posterior_mean, narrow) == pytest.approx(gradient(posterior_mean, wide), rel=0.2)


def test_both_calls_have_the_same_dropout_masks() -> None:
    torch.manual_seed(0)
    dropout = RepeatableDropout(0.5)
    objective = objective_of(EDM, lambda x, t, y: dropout(torch.ones_like(x)))
    x0, t = torch.zeros(4, 16), torch.tensor([900] * 4)
    assert (objective(x0, t, x0) > 0).all()
    repeated = Objective(objective.denoiser, objective.loss, unweighted, dropouts=[dropout])
    assert repeated(x0, t, x0).tolist() == [0] * 4
    assert not dropout.repeats


@pytest.mark.parametrize("process", [EDM, LINEAR, COSINE], ids=["edm", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_exact_consistency_function_draws_the_data(process: Process, steps: int) -> None:
    torch.manual_seed(0)

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        signal, sigma = process.amplitudes(t)
        return Estimate(MEAN + (x_t - signal * MEAN) * STD / math.sqrt((signal * STD) ** 2 + sigma**2))

    pairs = pairs_to_level(process, steps, 0.821)
    count = 100_000

    def noise() -> Tensor:
        return torch.randn(count, dtype=torch.float64)

    x = process.initial_std(pairs[0][0]) * noise()
    made = list(consistency(denoise, x, process, pairs, noise))
    assert [step.t for step in made] == [t for t, _ in pairs]
    assert len(made) == steps
    assert torch.equal(made[-1].x, made[-1].x0)
    tolerance = 4 / math.sqrt(count)
    assert float(made[-1].x.mean()) == pytest.approx(MEAN, abs=tolerance * STD)
    assert float(made[-1].x.std()) == pytest.approx(STD, rel=tolerance)


def test_timesteps_of_the_sampler() -> None:
    assert pairs_to_level(EDM, 1, 0.821) == [(999, -1)]
    (first, mid), last = pairs_to_level(EDM, 2, 0.821)
    assert (first, last) == (999, (mid, -1))
    assert EDM.sigmas[mid] == pytest.approx(0.821, rel=0.005)
    four = [t for t, _ in pairs_to_level(EDM, 4, 0.821)]
    assert four == [999, round(999 - (999 - mid) / 3), round(999 - (999 - mid) * 2 / 3), mid]
    assert pairs_to_level(EDM, 4, 0.821, start=mid + 1) == [(mid + 1, mid), (mid, -1)]
    assert [t for t, _ in pairs_to_level(FLOW, 1000, 1e6)] == list(range(999, -1, -1))  # as many as there are
