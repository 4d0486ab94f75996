import pytest
import torch
from torch import Tensor

from ddpm_cli.config import L1, L2, Huber, Option, implementation_of
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import Objective, l2, unweighted
from ddpm_cli.diffusion.process import Process


def plain(denoiser: Denoiser) -> Objective:
    return Objective(denoiser, l2, unweighted)


BETAS = torch.linspace(0.01, 0.3, 20, dtype=torch.float64)


def test_distances_by_hand() -> None:
    output, target = torch.tensor([[0.0, 3.0], [1.0, 1.0]]), torch.tensor([[0.5, 0.0], [1.0, 1.0]])

    denoiser = Denoiser(lambda x, t, y: output, Process.from_betas(BETAS), "x0")

    def first(loss: Option) -> float:
        objective = Objective(denoiser, implementation_of(loss), unweighted)
        each = objective(target, torch.tensor([3, 4]), torch.zeros(2, 2))
        assert each.shape == (2,)
        assert each[1] == 0
        return float(each[0])

    assert first(L1()) == pytest.approx((0.5 + 3) / 2)
    assert first(L2()) == pytest.approx((0.25 + 9) / 2)
    assert first(Huber(delta=1.0)) == pytest.approx((0.125 + 2.5) / 2)
    assert first(Huber(delta=2.0)) == pytest.approx((0.125 + 2 * (3 - 1)) / 2)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
def test_perfect_network_has_zero_loss(prediction: str) -> None:
    torch.manual_seed(0)
    process = Process.from_betas(BETAS)
    x0, eps, t = torch.randn(20, 1, 4, 4), torch.randn(20, 1, 4, 4), torch.arange(20)
    answer = Denoiser(lambda x, t, y: x, process, prediction).target(x0, t, eps)
    denoiser = Denoiser(lambda x, t, y: answer, process, prediction)
    assert plain(denoiser)(x0, t, eps).tolist() == [0] * 20
    wrong = Denoiser(lambda x, t, y: answer + 2, process, prediction)
    assert plain(wrong)(x0, t, eps).tolist() == pytest.approx([4] * 20, rel=1e-4)


def test_self_conditioning_shows_the_first_estimate_without_gradient() -> None:
    process = Process.from_betas(BETAS)
    weight = torch.tensor(0.5, requires_grad=True)
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(x)
        return x[:, 1:] * weight

    denoiser = Denoiser(network, process, "x0", self_condition=True)
    x0, eps, t = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    plain(denoiser)(x0, t, eps, self_condition=True)
    x_t = process.q_sample(x0, t, eps)
    assert len(seen) == 2
    assert torch.equal(seen[0], torch.cat([torch.zeros_like(x_t), x_t], dim=1))
    assert torch.allclose(seen[1], torch.cat([x_t * 0.5, x_t], dim=1))
    assert not seen[1].requires_grad

    seen.clear()
    plain(denoiser)(x0, t, eps, self_condition=False)
    assert len(seen) == 1
    assert (seen[0][:, :1] == 0).all()
