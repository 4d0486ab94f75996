"""Classifier-free guidance on data whose conditional and unconditional denoisers are known in closed form."""

import pytest
import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.sampling import Guidance, guided_output, hide_labels
from tests.conftest import a_sampler
from tests.diffusion.toys import COSINE, steps_of

SPREAD = 0.1
NULL = 2


class Counted:
    """Return E[x0 | x_t, y]: class 0 is N(-0.6, SPREAD**2), class 1 is N(0.6, SPREAD**2), null is the even mixture."""

    def __init__(self, process: Process) -> None:
        self.signal = torch.tensor(process.alphas_cumprod)
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        self.batches.append(len(x))
        ac = self.signal[t][:, None]
        total = ac * SPREAD**2 + 1 - ac
        means = torch.tensor([-0.6, 0.6]).expand(len(x), 1, 2)
        off = x[..., None] - ac.sqrt()[..., None] * means
        each = means + (ac.sqrt() * SPREAD**2 / total)[..., None] * off
        shares = (-(off**2) / (2 * total[..., None])).softmax(-1)
        mixture = (shares * each).sum(-1)
        own = torch.gather(each, 2, y.clamp(max=1).view(-1, 1, 1).expand(-1, x.shape[1], 1))[..., 0]
        return torch.where((y == NULL)[:, None], mixture, own)


def drawn(scale: float, y: int, network: Counted) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(4000, 1, generator=generator)

    guidance = Guidance(torch.full((4000,), y), NULL, scale)
    denoiser = Denoiser(network, COSINE, "x0")
    *_, last = steps_of(a_sampler(steps=300, thresholding="none"), denoiser, noise(), noise, guidance)
    return last.x[:, 0]


def test_scale_0_is_the_unconditional_model() -> None:
    x = drawn(0, 1, Counted(COSINE))
    assert float((x > 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(x.var()) == pytest.approx(0.36 + SPREAD**2, abs=0.02)


def test_scale_1_is_the_conditional_model() -> None:
    x = drawn(1, 1, Counted(COSINE))
    assert float(x.mean()) == pytest.approx(0.6, abs=0.02)
    assert float(x.std()) == pytest.approx(SPREAD, abs=0.01)
    assert float(drawn(1, 0, Counted(COSINE)).mean()) == pytest.approx(-0.6, abs=0.02)


def test_larger_scale_moves_away_from_the_other_class() -> None:
    assert drawn(3, 1, Counted(COSINE)).min() > drawn(1, 1, Counted(COSINE)).min()


@pytest.mark.parametrize(("scale", "size"), [(0, 3), (1, 3), (2, 6), (0.5, 6)])
def test_guidance_doubles_the_batch_only_if_both_outputs_are_needed(scale: float, size: int) -> None:
    network = Counted(COSINE)
    x = torch.zeros(3, 1)
    guided_output(Denoiser(network, COSINE, "x0"), x, torch.full((3,), 5), torch.tensor([0, 1, 0]), NULL, scale, None)
    assert network.batches == [size]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_is_linear_and_keeps_the_conditional_variance(prediction: str) -> None:
    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        value = y[:, None].float()
        return torch.cat([10 + value, value / 10], dim=1)  # 12 and 0.2 without a class

    denoiser = Denoiser(network, COSINE, prediction, "learned_range")
    x, t, y = torch.zeros(2, 1), torch.tensor([5, 6]), torch.tensor([0, 1])
    output = guided_output(denoiser, x, t, y, NULL, 3.0, None)
    assert output.prediction[:, 0].tolist() == [12 + 3 * (10 - 12), 12 + 3 * (11 - 12)]
    assert output.fraction is not None
    assert output.fraction[:, 0].tolist() == pytest.approx([0.5, 0.55])


def test_self_conditioning_is_used_in_both_halves() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(x)
        return x[:, 1:]

    denoiser = Denoiser(network, COSINE, "x0", self_condition=True, limit=5.0)
    x, last = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])
    guided_output(denoiser, x, torch.tensor([5, 5]), torch.tensor([0, 1]), NULL, 2.0, last)
    assert seen[0].tolist() == [[3, 1], [4, 2], [3, 1], [4, 2]]


def test_hidden_labels() -> None:
    hidden = torch.tensor([True, False, True])
    assert hide_labels(torch.tensor([0, 1, 1]), hidden, NULL).tolist() == [2, 1, 2]
