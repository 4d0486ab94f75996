"""Classifier-free guidance on data whose conditional and unconditional denoisers are known in closed form."""

import pytest
import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.sampling import Guidance, GuidanceRule, guided_output, hide_labels, rescaled
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

    guidance = Guidance(torch.full((4000,), y), NULL, GuidanceRule(scale))
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
    guidance = Guidance(torch.tensor([0, 1, 0]), NULL, GuidanceRule(scale))
    guided_output(Denoiser(network, COSINE, "x0"), x, 5, guidance, None)
    assert network.batches == [size]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_is_linear_and_keeps_the_conditional_variance(prediction: str) -> None:
    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        value = y[:, None].float()
        return torch.cat([10 + value, value / 10], dim=1)  # 12 and 0.2 without a class

    denoiser = Denoiser(network, COSINE, prediction, "learned_range")
    guidance = Guidance(torch.tensor([0, 1]), NULL, GuidanceRule(3.0))
    output = guided_output(denoiser, torch.zeros(2, 1), 5, guidance, None)
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
    guided_output(denoiser, x, 5, Guidance(torch.tensor([0, 1]), NULL, GuidanceRule(2.0)), last)
    assert seen[0].tolist() == [[3, 1], [4, 2], [3, 1], [4, 2]]


def test_hidden_labels() -> None:
    hidden = torch.tensor([True, False, True])
    assert hide_labels(torch.tensor([0, 1, 1]), hidden, NULL).tolist() == [2, 1, 2]


def constant(value: float) -> Denoiser:
    return Denoiser(lambda x, t, y: torch.full_like(x, value), COSINE, "x0")


def test_guidance_acts_within_its_interval_only() -> None:
    rule = GuidanceRule(3.0, interval=(0.5, 2.0))
    for t in range(1000):
        signal, sigma = COSINE.amplitudes(t)
        assert rule.scale_at(COSINE, t) == (3.0 if 0.5 <= sigma / signal <= 2.0 else 1.0)
    network = Counted(COSINE)
    guidance = Guidance(torch.tensor([0, 1]), NULL, rule)
    for t in (5, 500, 990):
        guided_output(Denoiser(network, COSINE, "x0"), torch.zeros(2, 1), t, guidance, None)
    assert network.batches == [2, 4, 2]
    assert [rule.evaluations(COSINE, t) for t in (5, 500, 990)] == [1, 2, 1]


def test_guide_replaces_the_unconditional_network() -> None:
    """g + scale (d - g) for the estimates of x0, whatever the two networks predict."""
    x, t = torch.full((2, 3), 0.7), 400
    at = torch.full((2,), t)
    for prediction in ("x0", "eps", "v", "edm"):
        guide = Denoiser(lambda x, t, y: torch.full_like(x, 0.3), COSINE, prediction)
        of_guide = guide.x0(guide(x, at), x, at)
        rule = GuidanceRule(2.0, guide=guide)
        output = guided_output(constant(0.5), x, t, Guidance(None, 0, rule), None)
        assert torch.allclose(output.prediction, of_guide + 2 * (0.5 - of_guide), atol=1e-5)
    assert rule.evaluations(COSINE, t) == 2


def test_conditional_guide_sees_the_classes() -> None:
    seen: list[Tensor | None] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(y)
        return x

    y = torch.tensor([0, 1])
    for has_classes in (True, False):
        rule = GuidanceRule(2.0, guide=Denoiser(network, COSINE, "x0"), guide_has_classes=has_classes)
        guided_output(constant(0.5), torch.zeros(2, 1), 5, Guidance(y, NULL, rule), None)
    assert seen[0] is y
    assert seen[1] is None


def test_rescaling_by_hand() -> None:
    """Lin et al. 2023, eq. 15 and 16: the standard deviation of each example moves towards that of the prediction."""
    torch.manual_seed(0)
    own, guided = torch.randn(3, 2, 4, 4), 1 + 3 * torch.randn(3, 2, 4, 4)
    for share in (0.0, 0.7, 1.0):
        found = rescaled(guided, own, share)
        for i in range(3):
            whole = guided[i] * own[i].std() / guided[i].std()
            assert torch.allclose(found[i], share * whole + (1 - share) * guided[i], atol=1e-5)
