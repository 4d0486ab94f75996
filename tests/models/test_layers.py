"""Layers against their definitions, written with loops or NumPy."""

import math

import numpy as np
import torch
from torch import nn

from ddpm_cli.models.layers import Attention, LinearAttention, WeightStandardizedConv2d, sinusoidal_embedding


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def projections(layer: Attention | LinearAttention, x: torch.Tensor) -> np.ndarray:
    """q, k, v of the first image: (3, heads, head_dim, pixels)."""
    qkv = layer.to_qkv(layer.norm(x))[0].detach().numpy()
    return qkv.reshape(3, layer.heads, -1, x.shape[2] * x.shape[3])


def test_sinusoidal_embedding_by_hand() -> None:
    emb = sinusoidal_embedding(torch.tensor([0, 7]), 6)
    frequencies = [1, 10_000**-0.5, 1 / 10_000]
    assert emb[0].tolist() == [0, 0, 0, 1, 1, 1]
    expected = [math.sin(7 * f) for f in frequencies] + [math.cos(7 * f) for f in frequencies]
    assert np.allclose(emb[1], expected, atol=1e-6)


def test_standardised_filters_have_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    conv = WeightStandardizedConv2d(4, 5, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(7).add_(3)  # any scale and shift is undone
    x = torch.randn(2, 4, 6, 6)
    weight = conv.weight.detach().numpy().astype(np.float64)
    flat = weight.reshape(5, -1)
    standardised = ((flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)).reshape(weight.shape)
    expected = nn.functional.conv2d(x, torch.tensor(standardised).float(), conv.bias, padding=1)
    assert torch.allclose(conv(x), expected, atol=1e-4)


def test_linear_attention_is_its_definition() -> None:
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


def test_full_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    layer = Attention(8, heads=2, head_dim=3)
    x = torch.randn(1, 8, 2, 4)
    q, k, v = projections(layer, x)
    weights = softmax(np.einsum("hdi,hdj->hij", q, k) / math.sqrt(3), axis=2)
    out = np.einsum("hij,hdj->hdi", weights, v)
    expected = x + layer.to_out(torch.tensor(out).float().reshape(1, 6, 2, 4))
    assert torch.allclose(layer(x), expected, atol=1e-5)
