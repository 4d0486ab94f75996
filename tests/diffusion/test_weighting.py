"""Compare weights with the papers' formulas, and with each other for eps, x0 and v prediction."""

import math
from functools import partial

import pytest
import torch

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import Objective, Weights, edm, l2, min_snr, p2, sigmoid, unweighted
from ddpm_cli.diffusion.predictions import Parameterization, parameterization
from tests.diffusion.toys import LINEAR

SNR = torch.tensor([0.01, 1.0, 5.0, 400.0])


def of(prediction: str) -> Parameterization:
    return parameterization(prediction, sigma_data=0.5)


def test_min_snr_by_hand() -> None:
    """Hang et al. 2023: min(snr, 5) on x0, min(snr, 5) / snr on eps, min(snr, 5) / (snr + 1) on v."""
    assert min_snr(of("x0"), SNR, gamma=5.0).tolist() == pytest.approx([0.01, 1, 5, 5])
    assert min_snr(of("eps"), SNR, gamma=5.0).tolist() == pytest.approx([1, 1, 1, 5 / 400])
    assert min_snr(of("v"), SNR, gamma=5.0).tolist() == pytest.approx([0.01 / 1.01, 1 / 2, 5 / 6, 5 / 401])


def test_p2_by_hand() -> None:
    """Choi et al. 2022: 1 / (k + snr)**gamma on eps."""
    expected = [1 / (2 + snr) ** 0.5 for snr in SNR.tolist()]
    assert p2(of("eps"), SNR, k=2.0, gamma=0.5).tolist() == pytest.approx(expected)


def test_sigmoid_by_hand() -> None:
    """Hoogeboom et al. 2024: sigmoid(bias - log snr) on eps."""
    expected = [1 / (1 + math.exp(math.log(snr) + 3)) for snr in SNR.tolist()]
    assert sigmoid(of("eps"), SNR, bias=-3.0).tolist() == pytest.approx(expected)


def test_edm_by_hand() -> None:
    """Karras et al. 2022, table 1: (sigma**2 + 0.25) / (0.5 sigma)**2 on x0, which is 1 on F."""
    sigmas = [snr**-0.5 for snr in SNR.tolist()]
    expected = [(sigma**2 + 0.25) / (0.5 * sigma) ** 2 for sigma in sigmas]
    assert edm(of("x0"), SNR, sigma_data=0.5).tolist() == pytest.approx(expected)
    assert edm(of("edm"), SNR, sigma_data=0.5).tolist() == pytest.approx([1, 1, 1, 1])


def test_unweighted_is_one() -> None:
    assert unweighted(of("v"), SNR).tolist() == [1, 1, 1, 1]


def test_weight_at_zero_snr_is_zero() -> None:
    nothing = torch.zeros(1)
    for prediction in ("x0", "v"):
        assert min_snr(of(prediction), nothing, gamma=5.0).item() == 0
        assert p2(of(prediction), nothing, k=1.0, gamma=1.0).item() == 0


@pytest.mark.parametrize(
    "weighting",
    [
        partial(min_snr, gamma=5.0),
        partial(p2, k=1.0, gamma=1.0),
        partial(edm, sigma_data=0.3),
        partial(sigmoid, bias=-1.0),
    ],
    ids=["min_snr", "p2", "edm", "sigmoid"],
)
def test_weighted_loss_does_not_depend_on_the_prediction(weighting: Weights) -> None:
    """Compare networks whose outputs correspond to the same wrong x0."""
    torch.manual_seed(0)
    t = torch.tensor([5, 300, 700])
    x0, eps, wrong = torch.randn(3, 3, 1, 4, 4)
    x_t = LINEAR.q_sample(x0, t, eps)
    costs = []
    for prediction in ("x0", "eps", "v", "edm"):
        target = Denoiser(lambda x, t, y: x, LINEAR, prediction).target
        wrong_eps = (x_t - LINEAR.at(LINEAR.signal, t, x0) * wrong) / LINEAR.at(LINEAR.sigma, t, x0)
        output = target(wrong, t, wrong_eps)
        denoiser = Denoiser(lambda x, t, y, output=output: output, LINEAR, prediction)
        costs.append(Objective(denoiser, l2, weighting)(x0, t, eps))
    for cost in costs[1:]:
        assert torch.allclose(costs[0], cost, rtol=1e-3)
