"""Compare schedules with their formulas, written out with Python's math module alone."""

import math
from fractions import Fraction

import pytest
import torch

from ddpm_cli.config import Constant, Cosine, FlowPath, Linear, Quadratic, Sigmoid
from ddpm_cli.diffusion.schedules import betas_of, path_of
from ddpm_cli.errors import UserError

RAMP = {"beta_start": 1e-4, "beta_end": 0.02, "rescale": False}


def test_linear_by_hand() -> None:
    betas = betas_of(Linear(timesteps=3, beta_start=0.1, beta_end=0.3, rescale=False, zero_terminal_snr=False))
    assert betas.tolist() == pytest.approx([0.1, 0.2, 0.3], rel=1e-12)


def test_quadratic_by_hand() -> None:
    betas = betas_of(Quadratic(timesteps=3, beta_start=0.01, beta_end=0.25, rescale=False, zero_terminal_snr=False))
    assert betas.tolist() == pytest.approx([0.01, 0.09, 0.25], rel=1e-12)


def test_sigmoid_by_hand() -> None:
    betas = betas_of(Sigmoid(timesteps=3, beta_start=0.1, beta_end=0.3, rescale=False, zero_terminal_snr=False))
    edge = 0.2 / (1 + math.exp(6))
    assert betas.tolist() == pytest.approx([0.1 + edge, 0.2, 0.3 - edge], rel=1e-12)


def test_constant() -> None:
    assert betas_of(Constant(timesteps=4, beta=0.035, zero_terminal_snr=False)).tolist() == [0.035] * 4


@pytest.mark.parametrize("timesteps", [10, 1000, 4000])
def test_cosine_gives_the_alphas_cumprod_of_its_definition(timesteps: int) -> None:
    betas = betas_of(Cosine(timesteps=timesteps, s=0.008, max_beta=0.999, zero_terminal_snr=False))

    def f(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    product = 1.0
    for t, beta in enumerate(betas.tolist(), start=1):
        product *= 1 - beta
        if t < timesteps:
            assert product == pytest.approx(f(t) / f(0), rel=1e-9)
    assert betas[-1] == 0.999  # otherwise alphas_cumprod would reach 0, where the log-SNR is infinite


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid])
@pytest.mark.parametrize("timesteps", [100, 1000, 4000])
def test_rescaled_betas_end_at_the_same_noise(kind: type, timesteps: int) -> None:
    full = betas_of(kind(timesteps=1000, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=False))
    scaled = betas_of(kind(timesteps=timesteps, beta_start=1e-4, beta_end=0.02, rescale=True, zero_terminal_snr=False))
    assert scaled[0] == pytest.approx(full[0].item() * 1000 / timesteps, rel=1e-9)
    at_end, expected = torch.log1p(-scaled).sum(), torch.log1p(-full).sum()
    assert at_end == pytest.approx(expected.item(), rel=0.12)  # equal to first order in beta


def test_betas_are_float64_in_0_1() -> None:
    for schedule in [
        Linear(timesteps=1000, zero_terminal_snr=False, **RAMP),
        Quadratic(timesteps=1000, zero_terminal_snr=False, **RAMP),
        Sigmoid(timesteps=1000, zero_terminal_snr=False, **RAMP),
        Cosine(timesteps=1000, s=0.008, max_beta=0.999, zero_terminal_snr=False),
        Constant(timesteps=1000, beta=0.01, zero_terminal_snr=False),
    ]:
        betas = betas_of(schedule)
        assert betas.dtype == torch.float64
        assert ((betas > 0) & (betas < 1)).all()


def test_schedule_without_signal_is_rejected() -> None:
    with pytest.raises(UserError, match=r"schedule=constant.*ends at"):
        betas_of(Constant(timesteps=3000, beta=0.5, zero_terminal_snr=False))


def test_one_timestep() -> None:
    assert betas_of(
        Linear(timesteps=1, beta_start=0.1, beta_end=0.3, rescale=False, zero_terminal_snr=False)
    ).tolist() == [0.1]


def test_unscaled_betas_of_annotated_do_not_end_in_noise() -> None:
    """As its YAML comment states, x_T keeps more than a fifth of the image's amplitude."""
    betas = betas_of(Linear(timesteps=300, zero_terminal_snr=False, **RAMP))
    assert torch.cumprod(1 - betas, 0)[-1].item() == pytest.approx(0.048, abs=0.001)


@pytest.mark.parametrize("shift", [0.01, 0.05, 0.1, 0.2, 0.3, 1.0, 3.0, 100.0])
def test_flow_ends_without_signal(shift: float) -> None:
    """Compare with eq. 23 of Esser et al. 2024 in exact fractions."""
    path = path_of(FlowPath(timesteps=50, shift=shift))
    assert path.signal[-1] == 0
    assert path.sigma[-1].item() == pytest.approx(1, rel=1e-12)
    u, s = Fraction(7, 50), Fraction(shift)
    sigma = s * u / (1 + (s - 1) * u)
    assert path.sigma[6].item() == pytest.approx(float(sigma), rel=1e-12)
    assert path.signal[6].item() == pytest.approx(float(1 - sigma), rel=1e-12)
