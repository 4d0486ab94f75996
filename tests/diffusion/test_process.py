import pytest
import torch

from ddpm_cli.diffusion.process import Process

BETAS = torch.linspace(0.01, 0.3, 20, dtype=torch.float64)


def test_q_sample_has_the_moments_of_the_iterated_chain() -> None:
    torch.manual_seed(0)
    count, start = 200_000, 0.7
    x = torch.full((count,), start, dtype=torch.float64)
    for beta in BETAS:
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn_like(x)  # q(x_t | x_{t-1}), eq. 2
    t = torch.full((count,), len(BETAS) - 1)
    closed = Process(BETAS).q_sample(torch.full((count,), start), t, torch.randn(count))
    assert closed.mean() == pytest.approx(x.mean().item(), abs=0.01)
    assert closed.var() == pytest.approx(x.var().item(), abs=0.01)


def test_each_image_is_noised_at_its_own_t() -> None:
    process = Process(torch.tensor([0.19, 0.36], dtype=torch.float64))
    x0, eps = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 2.0)
    x_t = process.q_sample(x0, torch.tensor([0, 1]), eps)
    product = 0.81 * 0.64
    assert x_t[0].unique().item() == pytest.approx(0.9 + 2 * 0.19**0.5)
    assert x_t[1].unique().item() == pytest.approx(product**0.5 + 2 * (1 - product) ** 0.5)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_x0_from_inverts_target(prediction: str) -> None:
    torch.manual_seed(0)
    process = Process(BETAS)
    x0, eps, t = torch.randn(20, 3, 4, 4), torch.randn(20, 3, 4, 4), torch.arange(20)
    x_t = process.q_sample(x0, t, eps)
    output = process.target(prediction, x0, t, eps)
    assert torch.allclose(process.x0_from(prediction, output, x_t, t), x0, atol=1e-5)


def test_v_is_orthogonal_to_x_t() -> None:
    """Check that (x_t, v) is (x0, eps) rotated by the angle whose cosine is sqrt(alphas_cumprod)."""
    torch.manual_seed(0)
    process = Process(BETAS)
    x0, eps, t = torch.randn(20, 5), torch.randn(20, 5), torch.arange(20)
    x_t, v = process.q_sample(x0, t, eps), process.v(x0, t, eps)
    assert torch.allclose(x_t**2 + v**2, x0**2 + eps**2, atol=1e-5)


def test_noising_is_float32_under_autocast() -> None:
    process = Process(BETAS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_t = process.q_sample(torch.ones(2, 4), torch.tensor([3, 4]), torch.ones(2, 4))
    assert x_t.dtype == torch.float32
    plain = process.q_sample(torch.ones(2, 4), torch.tensor([3, 4]), torch.ones(2, 4))
    assert torch.equal(x_t, plain)
