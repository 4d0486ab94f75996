"""Importance sampling of timesteps is unbiased, has less variance, and agrees between processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm_cli.config import EdmPath
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import Objective, unweighted, vlb
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timestep_samplers import (
    LogitNormalTimesteps,
    LogNormalLevels,
    SecondMoment,
    Stratified,
    Uniform,
    cumulative,
)
from ddpm_cli.distributed import collectives
from tests.processes import in_two

T = 50
LOSSES = torch.linspace(3, 0.1, T) ** 3
"""Loss at each timestep."""


def of(timesteps: int) -> Process:
    """Return a process with so many timesteps."""
    return Process.from_betas(torch.full((timesteps,), 1e-3, dtype=torch.float64))


def filled(history: int = 3, uniform_mix: float = 0.001) -> SecondMoment:
    """Return a sampler whose history is filled with LOSSES."""
    sampler = SecondMoment(of(T), "cpu", history, uniform_mix)
    for _ in range(history):
        sampler.update(torch.arange(T), LOSSES)
    return sampler


def test_uniform_until_every_timestep_has_its_history() -> None:
    sampler = SecondMoment(of(T), "cpu", 2, 0.001)
    sampler.update(torch.arange(T), LOSSES)
    sampler.update(torch.arange(T - 1), LOSSES[:-1])
    assert sampler.probabilities().tolist() == pytest.approx([1 / T] * T)
    sampler.update(torch.tensor([T - 1]), LOSSES[-1:])
    expected = 0.999 * LOSSES / LOSSES.sum() + 0.001 / T
    assert torch.allclose(sampler.probabilities().float(), expected)


def test_probabilities_are_the_rms_of_the_recent_losses() -> None:
    sampler = SecondMoment(of(2), "cpu", 2, 0.01)
    for losses in ([9.0, 1.0], [3.0, 1.0], [4.0, 1.0]):  # the first losses drop out of the history
        sampler.update(torch.tensor([0, 1]), torch.tensor(losses))
    rms = 12.5**0.5
    assert sampler.probabilities()[0].item() == pytest.approx(0.99 * rms / (rms + 1) + 0.01 / 2)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Restrict torch to deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("timesteps", [1, 2, 50, 1000, 4001])
def test_deterministic_cumulative_sums(timesteps: int, deterministic: None) -> None:
    p = torch.rand(timesteps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(cumulative(p), p.cumsum(0), rtol=1e-13)


def test_rare_timesteps_are_drawn_as_often_as_their_weight_says() -> None:
    """A timestep is drawn if a uniform number is in its interval of the cumulative sums, whose length must be p."""
    sampler = SecondMoment(of(4000), "cpu", 1, 0.001)
    sampler.update(torch.arange(4000), torch.tensor([1e6] + [1e-6] * 3999))
    p = sampler.probabilities()
    assert torch.allclose(cumulative(p).diff(), p[1:], rtol=1e-8)
    _, weights = sampler.sample(1000, torch.Generator().manual_seed(0))
    assert weights.dtype == torch.float32


def test_repeated_timesteps_in_a_batch() -> None:
    """Losses of one batch enter the history in order: of five, the last three stay."""
    at_once, one_by_one = SecondMoment(of(2), "cpu", 3, 0.01), SecondMoment(of(2), "cpu", 3, 0.01)
    t, losses = torch.tensor([0, 1, 0, 0, 0, 1, 0]), torch.arange(1.0, 8.0)
    at_once.update(t, losses)
    for i in range(7):
        one_by_one.update(t[i : i + 1], losses[i : i + 1])
    assert torch.equal(at_once.losses[:, :3].sort().values, one_by_one.losses[:, :3].sort().values)
    assert sorted(at_once.losses[0, :3].tolist()) == [4, 5, 7]
    assert torch.equal(at_once.seen, one_by_one.seen)


def test_non_finite_loss_makes_the_distribution_uniform_until_overwritten() -> None:
    for bad in (float("inf"), float("nan"), 3e19):
        sampler = filled()
        sampler.update(torch.tensor([4]), torch.tensor([bad]))
        assert sampler.probabilities().tolist() == pytest.approx([1 / T] * T)
        for _ in range(3):
            sampler.update(torch.tensor([4]), LOSSES[4:5])
        assert torch.allclose(sampler.probabilities(), filled().probabilities())


def estimates(sampler: Uniform, losses: Tensor, count: int = 200_000) -> Tensor:
    t, weights = sampler.sample(count, torch.Generator().manual_seed(0))
    return weights * losses[t]


def test_importance_sampling_is_unbiased_with_less_variance() -> None:
    importance, uniform = estimates(filled(), LOSSES), estimates(Uniform(of(T), "cpu"), LOSSES)
    assert importance.mean().item() == pytest.approx(LOSSES.mean().item(), rel=0.01)
    assert uniform.mean().item() == pytest.approx(LOSSES.mean().item(), rel=0.02)
    assert importance.var() < uniform.var() / 10
    other = LOSSES.flip(0)  # also unbiased if the losses have changed since
    assert estimates(filled(uniform_mix=0.5), other).mean().item() == pytest.approx(other.mean().item(), rel=0.02)


def test_importance_sampling_of_the_bound() -> None:
    """Check L_vlb of a simple model of 1-D data, whose terms differ by orders of magnitude over t."""
    process = Process.from_betas(torch.linspace(1e-3, 0.2, T, dtype=torch.float64))
    denoiser = Denoiser(lambda x, t, y: 0.9 * x, process, "eps")
    objective = Objective(denoiser, vlb, unweighted, discrete=False)
    generator = torch.Generator().manual_seed(0)

    def losses(t: Tensor) -> Tensor:
        x0 = 0.5 * torch.randn(len(t), 8, generator=generator)
        return objective(x0, t, torch.randn(x0.shape, generator=generator))

    importance, uniform = SecondMoment(of(T), "cpu", 10, 0.001), Uniform(of(T), "cpu")
    for _ in range(10):
        importance.update(torch.arange(T), losses(torch.arange(T)))
    by_importance, by_chance = (
        weights * losses(t) for t, weights in (sampler.sample(100_000, generator) for sampler in (importance, uniform))
    )
    each_as_often = losses(torch.arange(T).repeat(2000)).mean().item()
    assert by_importance.mean().item() == pytest.approx(each_as_often, rel=0.03)
    assert by_importance.var() < by_chance.var() / 1.5


def test_state_can_be_restored() -> None:
    sampler, again = filled(), SecondMoment(of(T), "cpu", 3, 0.001)
    again.restore({key: value.clone() for key, value in sampler.state().items()})
    assert torch.equal(again.probabilities(), sampler.probabilities())


def half_each() -> dict[str, torch.Tensor]:
    sampler, rank = SecondMoment(of(T), "cpu", 3, 0.001), collectives.rank()
    for _ in range(3):
        half = torch.arange(T).chunk(2)[rank]
        sampler.update(half, LOSSES[half])
    sampler.update(torch.tensor([7]), torch.tensor([100.0 + rank]))
    return sampler.state()


def test_two_processes_have_the_same_distribution(tmp_path: Path) -> None:
    first, second = in_two(half_each, tmp_path)
    alone = filled()
    alone.update(torch.tensor([7, 7]), torch.tensor([100.0, 101.0]))
    for key, value in alone.state().items():
        assert torch.equal(first[key], second[key])
        assert torch.equal(first[key], value)


def test_log_normal_levels() -> None:
    """The logarithms of the levels have the mean and the standard deviation, and each is the nearest of the grid."""
    process = Process(path_of(EdmPath(timesteps=4000, sigma_min=0.002, sigma_max=80.0, rho=7.0)))
    sampler = LogNormalLevels(process, "cpu", mean=-1.2, std=1.2)
    t, weights = sampler.sample(100_000, torch.Generator().manual_seed(0))
    levels = torch.tensor(process.sigmas).log()
    assert levels[t].mean().item() == pytest.approx(-1.2, abs=0.02)
    assert levels[t].std().item() == pytest.approx(1.2, abs=0.02)
    assert weights.unique().tolist() == [1]
    wanted = torch.linspace(-7, 5, 500)  # beyond both ends
    nearest = (levels - wanted[:, None]).abs().argmin(dim=1)
    assert torch.equal(sampler.timesteps_of(wanted), nearest)


def test_logit_normal_timesteps() -> None:
    sampler = LogitNormalTimesteps(of(10_000), "cpu", mean=0.5, std=0.8)
    t, weights = sampler.sample(100_000, torch.Generator().manual_seed(0))
    logits = ((t + 0.5) / 10_000).logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logits.std().item() == pytest.approx(0.8, abs=0.02)
    assert weights.unique().tolist() == [1]


def test_stratified_timesteps() -> None:
    """Each of B equal parts has one, and over many batches each timestep is drawn as often."""
    sampler, generator = Stratified(of(40), "cpu"), torch.Generator().manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(2000):
        t, _ = sampler.sample(8, generator)
        assert ((t[1:] - t[:-1] - 5).abs() <= 1).all()
        counts += torch.bincount(t, minlength=40)
    assert counts.min() > 300  # 400 expected
    assert counts.max() < 500
