"""Compare `DdpmUNet` with functions written by hand after the code of Ho et al. and of Nichol & Dhariwal."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models import build_network
from ddpm_cli.models.ddpm_unet import VARIANTS, AttentionBlock, Downsample
from ddpm_cli.models.layers import cosine_first_embedding
from tests.conftest import composed

IMPROVED = [
    "dataset.image_size=8",
    "model=improved_cifar10",
    "model.width=8",
    "model.groups=4",
    "model.heads=2",
    "model.multipliers=[1,2]",
    "model.blocks=1",
    "model.attention=[none,full]",
]
SQUARE = ["model.width=64", "model.multipliers=[1]", "model.blocks=1", "model.attention=[full]", "model.heads=1"]


class Reference:
    """The network of Nichol & Dhariwal with two levels of one block, from the weights of a `DdpmUNet`."""

    def __init__(self, network: nn.Module, groups: int, heads: int) -> None:
        self.weights, self.groups, self.heads = network.state_dict(), groups, heads

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.of(name)
        by_group = x.reshape(len(x), self.groups, -1)
        scaled = (by_group - by_group.mean(2, keepdim=True)) / (by_group.var(2, False, keepdim=True) + 1e-5).sqrt()
        return scaled.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, *self.of(name), stride=stride, padding=self.of(name)[0].shape[2] // 2)

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        scale, shift = F.linear(F.silu(emb), *self.of(f"{name}.emb"))[:, :, None, None].chunk(2, 1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h) * (1 + scale) + shift))
        return h + (self.conv(f"{name}.residual", x) if f"{name}.residual.weight" in self.weights else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = self.conv(f"{name}.to_qkv", self.norm(f"{name}.norm", x)).flatten(2).chunk(3, 1)
        heads = []
        for one, other, value in zip(*(part.chunk(self.heads, 1) for part in (q, k, v)), strict=True):
            weights = (one.mT @ other / math.sqrt(one.shape[1])).softmax(2)
            heads.append(value @ weights.mT)
        return x + self.conv(f"{name}.to_out", torch.cat(heads, 1).reshape(x.shape))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * 10_000.0 ** (-torch.arange(4) / 4)
        emb = F.linear(torch.cat([angles.cos(), angles.sin()], 1), *self.of("embedding.mlp.0"))
        emb = F.linear(F.silu(emb), *self.of("embedding.mlp.2"))
        first = self.conv("stem", x)
        second = self.block("downs.0.0.block", first, emb)
        third = self.conv("downsamples.0.conv", second, stride=2)
        h = fourth = self.attention("downs.1.0.attention", self.block("downs.1.0.block", third, emb))
        h = self.attention("middle.0.attention", self.block("middle.0.block", h, emb))
        h = self.block("middle.1.block", h, emb)
        for j, skip in enumerate((fourth, third)):
            h = self.block(f"ups.0.{j}.block", torch.cat([h, skip], 1), emb)
            h = self.attention(f"ups.0.{j}.attention", h)
        h = self.conv("upsamples.0.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        for j, skip in enumerate((second, first)):
            h = self.block(f"ups.1.{j}.block", torch.cat([h, skip], 1), emb)
        return self.conv("head", F.silu(self.norm("norm", h)))


@torch.no_grad()
def test_improved_network_is_that_of_nichol_and_dhariwal() -> None:
    """The image is so dark that the eps of the first norms counts."""
    torch.manual_seed(0)
    network = build_network(composed(*IMPROVED).model, 3).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    nn.init.zeros_(network.get_parameter("stem.bias"))
    x, t = torch.randn(2, 3, 8, 8) / 100, torch.tensor([3, 700])
    expected = Reference(network, groups=4, heads=2)(x, t)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x, t), expected, rtol=0, atol=1e-4)
    other = build_network(composed(*IMPROVED, "model.variant=ddpm").model, 3).eval()
    other.load_state_dict(network.state_dict())
    assert (other(x, t) - expected).abs().max() > 0.1


def test_cosines_come_first() -> None:
    emb = cosine_first_embedding(torch.tensor([0, 7]), 6)
    frequencies = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]
    expected = [math.cos(7 * f) for f in frequencies] + [math.sin(7 * f) for f in frequencies]
    torch.testing.assert_close(emb, torch.tensor([[1.0, 1, 1, 0, 0, 0], expected]))


@pytest.mark.parametrize(("variant", "padding", "start"), [("ddpm", 2, 1), ("improved", 1, 0)])
def test_padding_of_strided_convolutions(variant: str, padding: int, start: int) -> None:
    """TensorFlow pads on the right and at the bottom, torch symmetrically."""
    torch.manual_seed(0)
    ours = Downsample(2, VARIANTS[variant].padding)
    x = torch.randn(1, 2, 6, 8)
    expected = F.conv2d(x, ours.conv.weight, ours.conv.bias, stride=2, padding=padding)[:, :, start:, start:]
    torch.testing.assert_close(ours(x), expected[:, :, :3, :4])


@pytest.mark.parametrize(("model", "bound"), [("ddpm_cifar10", math.sqrt(6 / 128)), ("improved_cifar10", 1 / 8)])
def test_queries_keys_and_values_are_initialised_as_separate_layers(model: str, bound: float) -> None:
    """The bound is that of Glorot & Bengio for 64 inputs and 64 outputs, or that of torch for 64 inputs."""
    torch.manual_seed(0)
    network = build_network(composed("dataset=cifar10", f"model={model}", *SQUARE).model, 3)
    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    assert len(blocks) == 4
    for third in [third for block in blocks for third in block.to_qkv.weight.chunk(3)]:
        assert 0.99 * bound < third.abs().max() <= bound
        assert third.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_improved_network_starts_with_the_parameters_of_torch_and_zero_branches() -> None:
    network = build_network(composed(*IMPROVED).model, 3)
    assert network.get_parameter("stem.bias").any()
    for name in ("head", "middle.0.block.conv2", "middle.0.attention.to_out"):
        assert not any(parameter.any() for parameter in network.get_submodule(name).parameters())
