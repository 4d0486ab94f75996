"""Weights by the papers' formulas, and the same weight whatever is predicted."""

import pytest
import torch

from ddpm_cli.config import L2, P2, MinSnr, Unweighted, Weighting
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import Objective
from ddpm_cli.diffusion.weighting import weights_of
from tests.diffusion.toys import LINEAR

SNR = torch.tensor([0.01, 1.0, 5.0, 400.0])


def test_min_snr_by_hand() -> None:
    """Hang et al. 2023: min(snr, 5) on x0, min(snr, 5) / snr on eps, min(snr, 5) / (snr + 1) on v."""
    weighting = MinSnr(gamma=5.0)
    assert weights_of(weighting, "x0", SNR).tolist() == pytest.approx([0.01, 1, 5, 5])
    assert weights_of(weighting, "eps", SNR).tolist() == pytest.approx([1, 1, 1, 5 / 400])
    assert weights_of(weighting, "v", SNR).tolist() == pytest.approx([0.01 / 1.01, 1 / 2, 5 / 6, 5 / 401])


def test_p2_by_hand() -> None:
    """Choi et al. 2022: 1 / (k + snr)**gamma on eps."""
    expected = [1 / (2 + snr) ** 0.5 for snr in SNR.tolist()]
    assert weights_of(P2(k=2.0, gamma=0.5), "eps", SNR).tolist() == pytest.approx(expected)


def test_none_is_one() -> None:
    assert weights_of(Unweighted(), "v", SNR).tolist() == [1, 1, 1, 1]


def test_no_signal_weighs_nothing_rather_than_nan() -> None:
    nothing = torch.zeros(1)
    for prediction in ("x0", "v"):
        assert weights_of(MinSnr(gamma=5.0), prediction, nothing).item() == 0
        assert weights_of(P2(k=1.0, gamma=1.0), prediction, nothing).item() == 0


@pytest.mark.parametrize("weighting", [MinSnr(gamma=5.0), P2(k=1.0, gamma=1.0)], ids=["min_snr", "p2"])
def test_the_same_error_costs_the_same_whatever_is_predicted(weighting: Weighting) -> None:
    """Three networks with one and the same wrong x0 behind their eps, x0 and v."""
    torch.manual_seed(0)
    t = torch.tensor([5, 300, 700])
    x0, eps, wrong = torch.randn(3, 3, 1, 4, 4)
    x_t = LINEAR.q_sample(x0, t, eps)
    signal, sigma = (
        LINEAR.at(table, t, x0) for table in (LINEAR.sqrt_alphas_cumprod, LINEAR.sqrt_one_minus_alphas_cumprod)
    )
    wrong_eps = (x_t - signal * wrong) / sigma
    outputs = {"x0": wrong, "eps": wrong_eps, "v": signal * wrong_eps - sigma * wrong}
    costs = []
    for prediction, output in outputs.items():
        denoiser = Denoiser(lambda x, t, y, output=output: output, LINEAR, prediction)
        costs.append(Objective(denoiser, L2(), weighting)(x0, t, eps))
    assert torch.allclose(costs[0], costs[1], rtol=1e-3)
    assert torch.allclose(costs[0], costs[2], rtol=1e-3)
