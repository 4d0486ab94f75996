"""DDPM++, compared with a network written a second time as a list of instructions, and with the published count."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.models import build_network
from ddpm_cli.models.ddpmpp import DdpmPp
from ddpm_cli.sampling.build import network_of
from tests.conftest import TINY, composed
from tests.models.test_networks import randomized

SMALL = [TINY[0], "model=ddpmpp", "model.width=8", "model.multipliers=[1,3,2]", "model.blocks=2"]
ATTENTION = [False, True, False]
Weights = dict[str, Tensor]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Groups of 4 channels: the tested widths are below 128."""
    groups = x.unflatten(1, (-1, 4))
    mean = groups.mean(dim=(2, 3, 4), keepdim=True)
    var = (groups - mean).square().mean(dim=(2, 3, 4), keepdim=True)
    normed = ((groups - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
    return normed * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    """Sum over the places of the filter."""
    weight = w[f"{name}.weight"]
    size = weight.shape[2]
    padded = F.pad(x, [size // 2] * 4)
    height, width = x.shape[2:]
    out = w[f"{name}.bias"][None, :, None, None].expand(len(x), -1, height, width)
    for i in range(size):
        for j in range(size):
            out = out + torch.einsum("oc,bcyx->boyx", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out


def half(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def layer(w: Weights, name: str, x: Tensor, emb: Tensor, resample: str, attends: bool) -> Tensor:
    change = {"down": half, "up": twice, "none": lambda x: x}[resample]
    h = conv(w, f"{name}.block.conv1", change(silu(norm(w, f"{name}.block.norm1", x))))
    added = emb @ w[f"{name}.block.emb.weight"].T + w[f"{name}.block.emb.bias"]
    h = silu(norm(w, f"{name}.block.norm2", h + added[:, :, None, None]))
    x = change(x)
    kept = conv(w, f"{name}.block.residual", x) if f"{name}.block.residual.weight" in w else x
    assert (f"{name}.block.residual.weight" in w) == (resample != "none" or h.shape[1] != x.shape[1])
    x = (conv(w, f"{name}.block.conv2", h) + kept) * math.sqrt(0.5)
    assert (f"{name}.attention.norm.weight" in w) == attends
    if attends:
        q, k, v = conv(w, f"{name}.attention.to_qkv", norm(w, f"{name}.attention.norm", x)).flatten(2).chunk(3, dim=1)
        scores = torch.exp(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(x.shape[1]))
        out = torch.einsum("bqk,bck->bcq", scores / scores.sum(dim=2, keepdim=True), v)
        x = (x + conv(w, f"{name}.attention.to_out", out.unflatten(2, x.shape[2:]))) * math.sqrt(0.5)
    return x


def reference(w: Weights, x: Tensor, t: Tensor, y: Tensor, labels: Tensor, blocks: int) -> Tensor:
    """Return the output by the order of layers in the code of Karras et al."""
    width = len(w["stem.bias"])
    frequencies = 10_000 ** (-torch.arange(width // 2).double() / (width // 2 - 1))
    angles = t[:, None] * frequencies
    emb = torch.cat([angles.sin(), angles.cos()], dim=1) + w["embedding.classes.weight"][y]
    emb = emb + labels @ w["embedding.augmentation.weight"].T
    for i in (0, 2):
        emb = silu(emb @ w[f"embedding.mlp.{i}.weight"].T + w[f"embedding.mlp.{i}.bias"])
    x = conv(w, "stem", x)
    skips, number = [x], 0
    for level, attends in enumerate(ATTENTION):
        for kind in (["down"] if level else []) + ["none"] * blocks:
            x = layer(w, f"downs.{number}", x, emb, kind, attends and kind == "none")
            skips.append(x)
            number += 1
    x = layer(w, "middle.0", x, emb, "none", attends=True)
    x = layer(w, "middle.1", x, emb, "none", attends=False)
    for i, attends in enumerate(reversed(ATTENTION)):
        for j in range(blocks + 1):
            x = layer(w, f"ups.{i}.{j}", torch.cat([x, skips.pop()], 1), emb, "none", attends and j == blocks)
        if i < len(ATTENTION) - 1:
            x = layer(w, f"upsamples.{i}", x, emb, "up", attends=False)
    assert not skips
    return conv(w, "head", silu(norm(w, "norm", x)))


def test_output_matches_its_definition() -> None:
    torch.manual_seed(0)
    more = ["model.attention=[none,full,none]", "model.self_condition=true"]
    network = randomized(build_network(composed(*SMALL, *more).model, 1, 3, outputs=2, augmentations=9)).double().eval()
    x, t, y = torch.randn(2, 2, 8, 12).double(), torch.tensor([7.0, -0.3]).double(), torch.tensor([1, 3])
    labels, w = torch.randn(2, 9).double(), dict(network.state_dict())
    with torch.no_grad():
        output, expected = network(x, t, y, augmentation=labels), reference(w, x, t, y, labels, blocks=2)
        untold, zero = network(x, t, y), reference(w, x, t, y, torch.zeros(2, 9).double(), blocks=2)
    assert torch.allclose(untold, zero, rtol=1e-4, atol=1e-5)
    assert output.shape == (2, 2, 8, 12)
    assert torch.allclose(output, expected, rtol=1e-4, atol=1e-5)  # sinusoids are float32


def test_network_for_cifar10_has_55_7_million_parameters() -> None:
    """Karras et al.'s network has 55,733,891 for unconditional CIFAR-10, 9 x 128 of which embed augmentations."""
    config = composed("model=ddpmpp", "dataset=cifar10", "dataset.augment=0.12")
    with torch.device("meta"):
        told, plain = network_of(config, []), build_network(config.model, 3)
    assert sum(parameter.numel() for parameter in told.parameters()) == 55_733_891
    assert sum(parameter.numel() for parameter in plain.parameters()) == 55_733_891 - 9 * 128


def test_initial_weights_are_those_of_karras_et_al() -> None:
    torch.manual_seed(0)
    network = build_network(composed(*SMALL, "model.width=32").model, 1, classes=6)
    assert isinstance(network, DdpmPp)
    assert 0 < network(torch.randn(1, 1, 8, 8), torch.tensor([0.3]), torch.tensor([2])).abs().max() < 1e-3
    conv1, conv2 = network.downs[0].block.conv1, network.downs[0].block.conv2
    bound = math.sqrt(6 / (9 * 32 + 9 * 32))
    assert conv1.weight.detach().abs().max() == pytest.approx(bound, rel=0.01)
    assert conv2.weight.detach().abs().max() == pytest.approx(bound * 1e-5, rel=0.01)
    attention = network.middle[0].attention
    assert attention.to_qkv.weight.detach().abs().max() == pytest.approx(math.sqrt(0.2 * 6 / (64 + 192)), rel=0.01)
    assert attention.to_out.weight.detach().abs().max() == pytest.approx(math.sqrt(6 / 128) * 1e-5, rel=0.01)
    assert not any(module.bias.any() for module in (conv1, conv2, attention.to_qkv, network.head))
    table = network.embedding.classes.weight.detach()
    assert not table[-1].any()
    assert table[:-1].abs().max() == pytest.approx(math.sqrt(6) * math.sqrt(6 / (6 + 32)), rel=0.05)


@pytest.mark.parametrize("width", [4, 12, 36, 100])
def test_widths_that_32_groups_do_not_divide(width: int) -> None:
    network = build_network(composed(*SMALL, f"model.width={width}", "model.blocks=1").model, 1)
    assert network(torch.randn(1, 1, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)


@pytest.mark.slow
def test_compiled_network_has_the_same_output_and_gradients() -> None:
    torch.manual_seed(0)
    model = composed(*SMALL, "model.multipliers=[1,2]", "model.attention=[none,full]", "model.blocks=1").model
    network = randomized(build_network(model, 1, classes=3)).double()
    inputs = torch.randn(2, 1, 8, 8).double(), torch.tensor([0.5, 9.0]), torch.tensor([0, 3])
    compiled = torch.compile(network.eval(), backend="aot_eager", fullgraph=True)
    results = []
    for run in (network, compiled):
        output = run(*inputs)
        results.append([output, *torch.autograd.grad(output.square().sum(), [*network.parameters()])])
    assert all(torch.allclose(plain, again, rtol=1e-6, atol=1e-6) for plain, again in zip(*results, strict=True))
