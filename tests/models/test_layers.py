"""Layers, compared with their definitions in loops or NumPy."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_cli.models.layers import (
    Attention,
    GroupNorm,
    LinearAttention,
    WeightStandardizedConv2d,
    class_vectors,
    group_norm_by_channel,
    make_dropout_repeatable,
    sinusoidal_embedding,
)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def projections(layer: Attention | LinearAttention, x: torch.Tensor) -> np.ndarray:
    """Return q, k and v of the first image: (3, heads, head_dim, pixels)."""
    qkv = layer.to_qkv(layer.norm(x))[0].detach().numpy()
    return qkv.reshape(3, layer.heads, -1, x.shape[2] * x.shape[3])


def test_sinusoidal_embedding_matches_its_formula() -> None:
    emb = sinusoidal_embedding(torch.tensor([0, 7]), 6)
    frequencies = [1, 10_000**-0.5, 1 / 10_000]
    assert emb[0].tolist() == [0, 0, 0, 1, 1, 1]
    expected = [math.sin(7 * f) for f in frequencies] + [math.cos(7 * f) for f in frequencies]
    assert np.allclose(emb[1], expected, atol=1e-6)


def test_standardised_filters_have_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    conv = WeightStandardizedConv2d(4, 5, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(7).add_(3)  # standardisation removes any scale and shift
    x = torch.randn(2, 4, 6, 6)
    weight = conv.weight.detach().numpy().astype(np.float64)
    flat = weight.reshape(5, -1)
    standardised = ((flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)).reshape(weight.shape)
    expected = nn.functional.conv2d(x, torch.tensor(standardised).float(), conv.bias, padding=1)
    assert torch.allclose(conv(x), expected, atol=1e-4)


@pytest.mark.parametrize("mean", [0, 100])
def test_group_norm_by_channel_matches_group_norm(mean: float) -> None:
    """Check output and gradients in float64, and the rounding error in float32 for data far from zero."""
    torch.manual_seed(0)
    x = (torch.randn(3, 12, 5, 4, dtype=torch.float64) + mean).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    ours = group_norm_by_channel(x, 4, weight, bias, 1e-6)
    theirs = nn.functional.group_norm(x, 4, weight, bias, 1e-6)
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    grad_output = torch.randn_like(x)
    gradients = [torch.autograd.grad(out, inputs, grad_output) for out in (ours, theirs)]
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-8) for a, b in zip(*gradients, strict=True))
    x, weight, bias = (tensor.detach().float() for tensor in inputs)
    exact = theirs.detach()
    error = (group_norm_by_channel(x, 4, weight, bias, 1e-6) - exact).abs().max()
    assert error <= 2 * (nn.functional.group_norm(x, 4, weight, bias, 1e-6) - exact).abs().max() + 1e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_of_bfloat16_is_rounded_only_at_the_end(layout: torch.memory_format) -> None:
    """Check that the statistics are exact, also for data far from zero."""
    torch.manual_seed(0)
    norm = GroupNorm(2, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(3, 6, 5, 4) + 20).bfloat16().contiguous(memory_format=layout)
    groups = x.double().numpy().reshape(3, 2, 3, 5, 4)
    mean, var = groups.mean((2, 3, 4), keepdims=True), groups.var((2, 3, 4), keepdims=True)
    normed = torch.tensor(((groups - mean) / np.sqrt(var + 1e-5)).reshape(3, 6, 5, 4))
    expected = normed * norm.weight[:, None, None].double() + norm.bias[:, None, None].double()
    result = norm(x)
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.double(), expected, rtol=2**-8, atol=1e-4)


def test_linear_attention_matches_its_definition() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(8, heads=2, head_dim=3)
    x = torch.randn(1, 8, 2, 4)
    q, k, v = projections(layer, x)
    out = np.zeros((2, 3, 8))
    for head in range(2):
        queries, keys = softmax(q[head], axis=0) / math.sqrt(3), softmax(k[head], axis=1)
        for i in range(8):
            for j in range(8):
                out[head, :, i] += (queries[:, i] @ keys[:, j]) * v[head, :, j]
    expected = x + layer.to_out(torch.tensor(out).float().reshape(1, 6, 2, 4))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_gradients_of_linear_attention_match_its_definition() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(8, heads=2, head_dim=3).double()
    x = torch.randn(3, 8, 2, 4, dtype=torch.double)
    q, k, v = layer.to_qkv(layer.norm(x)).reshape(3, 3, 2, 3, 8).unbind(1)  # (B, heads, d, pixels)
    weights = torch.einsum("bhdi,bhdj->bhij", q.softmax(dim=2) / math.sqrt(3), k.softmax(dim=3))
    expected = x + layer.to_out(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(3, 6, 2, 4))
    direction, parameters = torch.randn_like(x), [*layer.parameters()]
    gradients = torch.autograd.grad((layer(x) * direction).sum(), parameters)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * direction).sum(), parameters), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_full_attention_matches_its_definition() -> None:
    torch.manual_seed(0)
    layer = Attention(8, heads=2, head_dim=3)
    x = torch.randn(1, 8, 2, 4)
    q, k, v = projections(layer, x)
    weights = softmax(np.einsum("hdi,hdj->hij", q, k) / math.sqrt(3), axis=2)
    out = np.einsum("hij,hdj->hdi", weights, v)
    expected = x + layer.to_out(torch.tensor(out).float().reshape(1, 6, 2, 4))
    assert torch.allclose(layer(x), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-5)  # a different implementation without gradients


def test_repeatable_dropout_draws_new_masks_unless_it_repeats() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 64), nn.Sequential(nn.Dropout(0.25)))
    names = list(network.state_dict())
    (dropout,) = make_dropout_repeatable(network)
    assert list(network.state_dict()) == names
    assert network[1][0] is dropout
    x = torch.ones(100, 64)
    first, second = dropout(x), dropout(x)
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert not torch.equal(first, second)
    dropout.repeats = True
    assert torch.equal(dropout(2 * x), 2 * second)
    assert dropout(x[:3]).shape == (3, 64)
    dropout.eval()
    assert torch.equal(dropout(x), x)


def test_class_vectors_are_initialised_as_by_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.Embedding(11, 8)
    torch.manual_seed(0)
    ours = class_vectors(10, 8)
    assert ours is not None
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.weight.requires_grad


def test_class_vectors_on_the_meta_device_do_not_import_dynamo() -> None:
    """Loading a checkpoint builds its network there. Importing torch._dynamo takes longer than that."""
    code = """
import sys, torch
from ddpm_cli.models.layers import class_vectors
with torch.device("meta"):
    assert class_vectors(10, 8).weight.shape == (11, 8)
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
