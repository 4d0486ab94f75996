"""Compare weights with the papers' formulas, and with each other for eps, x0 and v prediction."""

from functools import partial

import pytest
import torch

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import Objective, Weights, l2, min_snr, p2, unweighted
from tests.diffusion.toys import LINEAR

SNR = torch.tensor([0.01, 1.0, 5.0, 400.0])


def test_min_snr_by_hand() -> None:
    """Hang et al. 2023: min(snr, 5) on x0, min(snr, 5) / snr on eps, min(snr, 5) / (snr + 1) on v."""
    assert min_snr("x0", SNR, gamma=5.0).tolist() == pytest.approx([0.01, 1, 5, 5])
    assert min_snr("eps", SNR, gamma=5.0).tolist() == pytest.approx([1, 1, 1, 5 / 400])
    assert min_snr("v", SNR, gamma=5.0).tolist() == pytest.approx([0.01 / 1.01, 1 / 2, 5 / 6, 5 / 401])


def test_p2_by_hand() -> None:
    """Choi et al. 2022: 1 / (k + snr)**gamma on eps."""
    expected = [1 / (2 + snr) ** 0.5 for snr in SNR.tolist()]
    assert p2("eps", SNR, k=2.0, gamma=0.5).tolist() == pytest.approx(expected)


def test_unweighted_is_one() -> None:
    assert unweighted("v", SNR).tolist() == [1, 1, 1, 1]


def test_weight_at_zero_snr_is_zero() -> None:
    nothing = torch.zeros(1)
    for prediction in ("x0", "v"):
        assert min_snr(prediction, nothing, gamma=5.0).item() == 0
        assert p2(prediction, nothing, k=1.0, gamma=1.0).item() == 0


@pytest.mark.parametrize(
    "weighting", [partial(min_snr, gamma=5.0), partial(p2, k=1.0, gamma=1.0)], ids=["min_snr", "p2"]
)
def test_weighted_loss_does_not_depend_on_the_prediction(weighting: Weights) -> None:
    """Compare three networks whose eps, x0 and v correspond to the same wrong x0."""
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
        costs.append(Objective(denoiser, l2, weighting)(x0, t, eps))
    assert torch.allclose(costs[0], costs[1], rtol=1e-3)
    assert torch.allclose(costs[0], costs[2], rtol=1e-3)
