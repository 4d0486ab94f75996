"""The diffusion transformer, compared with loops over heads, tokens and patches, and with the counts of the paper."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_cli.models import build_network
from ddpm_cli.models.dit import Dit, rotate, rotations, sine_positions
from tests.conftest import TINY, composed
from tests.models.test_networks import randomized

SMALL = [TINY[0], "model=dit_s", "model.width=8", "model.heads=2", "model.depth=2"]
Weights = dict[str, np.ndarray]


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def modulated(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6) * (1 + scale) + shift


def embedded(w: Weights, t: float, y: int | None) -> np.ndarray:
    """Return the embedding of t and the class as each block sees it."""
    angles = t * 10_000.0 ** -(np.arange(128) / 127)
    emb = linear(w, "embedding.mlp.0", np.concatenate([np.sin(angles), np.cos(angles)]))
    emb = linear(w, "embedding.mlp.2", silu(emb))
    return silu(emb if y is None else emb + w["embedding.classes.weight"][y])


def encoded(token: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return a query or key rotated for its position: half of its pairs by the column, the others by the row."""
    half, quarter = len(token) // 2, len(token) // 4
    result = token.copy()
    for i in range(half):
        angle = (column if i < quarter else row) * 100.0 ** -(i % quarter / quarter)
        a, b = token[i], token[i + half]
        result[i] = a * np.cos(angle) - b * np.sin(angle)
        result[i + half] = a * np.sin(angle) + b * np.cos(angle)
    return result


def attention(w: Weights, name: str, x: np.ndarray, heads: int, columns: int, rotary: bool) -> np.ndarray:
    width = x.shape[1]
    dim = width // heads
    qkv = linear(w, f"{name}.to_qkv", x)
    out = np.zeros_like(x)
    for head in range(heads):
        q, k, v = (qkv[:, i * width + head * dim :][:, :dim] for i in range(3))
        if f"{name}.norm_q.weight" in w:
            q, k = (
                a / np.sqrt((a**2).mean(axis=1, keepdims=True) + 1e-6) * w[f"{name}.norm_{letter}.weight"]
                for letter, a in (("q", q), ("k", k))
            )
        if rotary:
            q, k = (np.stack([encoded(token, *divmod(n, columns)) for n, token in enumerate(a)]) for a in (q, k))
        for n in range(len(x)):
            weights = np.exp([q[n] @ key / np.sqrt(dim) for key in k])
            out[n, head * dim : (head + 1) * dim] = weights / weights.sum() @ v
    return linear(w, f"{name}.to_out", out)


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Return the fixed embeddings of the patches row by row, number for number."""
    table, count = np.zeros((rows * columns, width)), width // 4
    for n in range(rows * columns):
        for i in range(count):
            for part, place in enumerate((n % columns, n // columns)):
                angle = place / 10_000 ** (i / count)
                table[n, 2 * part * count + i] = np.sin(angle)
                table[n, (2 * part + 1) * count + i] = np.cos(angle)
    return table


def reference(network: Dit, image: np.ndarray, t: float, y: int | None, rotary: bool) -> np.ndarray:
    """Return the output for an image (C, H, W)."""
    w = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    p, (width, rows, columns) = (
        network.patch_size,
        (len(w["stem.bias"]), *(n // network.patch_size for n in image.shape[1:])),
    )
    patches = [image[:, r * p : (r + 1) * p, c * p : (c + 1) * p].ravel() for r in range(rows) for c in range(columns)]
    x = np.stack(patches) @ w["stem.weight"].reshape(width, -1).T + w["stem.bias"]
    if not rotary:
        x = x + positions(rows, columns, width)
    emb = embedded(w, t, y)
    for i in range(len(network.blocks)):
        name = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(linear(w, f"{name}.adaptive.linear", emb), 6)
        x = x + gate1 * attention(w, f"{name}.attention", modulated(x, shift1, scale1), 2, columns, rotary)
        hidden = gelu(linear(w, f"{name}.mlp.0", modulated(x, shift2, scale2)))
        x = x + gate2 * linear(w, f"{name}.mlp.2", hidden)
    x = linear(w, "head", modulated(x, *np.split(linear(w, "adaptive.linear", emb), 2)))
    channels = x.shape[1] // p**2
    output = np.zeros((channels, rows * p, columns * p))
    for n, token in enumerate(x):
        r, c = divmod(n, columns)
        output[:, r * p : (r + 1) * p, c * p : (c + 1) * p] = token.reshape(p, p, channels).transpose(2, 0, 1)
    return output


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_output_matches_its_definition(rotary: bool, qk_norm: bool) -> None:
    torch.manual_seed(0)
    more = [
        f"model.positions={'rotary' if rotary else 'sine'}",
        f"model.qk_norm={qk_norm}",
        "model.self_condition=true",
    ]
    network = randomized(build_network(composed(*SMALL, *more).model, 1, classes=3, outputs=2)).eval()
    assert isinstance(network, Dit)
    x, t, y = torch.randn(2, 2, 6, 4), torch.tensor([7.0, -0.3]), torch.tensor([1, 3])
    output = network(x, t, y)
    for i in range(2):
        expected = reference(network, x[i].numpy(), float(t[i]), int(y[i]), rotary)
        assert expected.shape == (2, 6, 4)
        assert np.allclose(output[i].detach(), expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(network(x, t)[0].detach(), reference(network, x[0].numpy(), 7, None, rotary), atol=1e-5)


def test_scores_of_rotated_tokens_depend_on_their_offset_only() -> None:
    torch.manual_seed(0)
    by = rotations(5, 6, 8, torch.device("cpu"))
    q, k = (rotate(torch.randn(8).expand(1, 1, 30, 8), by)[0, 0].unflatten(0, (5, 6)) for _ in range(2))
    scores = torch.einsum("abd,xyd->abxy", q, k)
    for row, column in ((1, 2), (0, 3), (2, 0)):
        same = [scores[r, c, r + row, c + column] for r in range(3) for c in range(3)]
        assert torch.allclose(torch.stack(same), same[0], atol=1e-5)
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


@pytest.mark.parametrize("positions", ["sine", "rotary"])
def test_one_network_accepts_images_of_any_size_and_has_no_table(positions: str) -> None:
    network = randomized(build_network(composed(*SMALL, f"model.positions={positions}").model, 1)).eval()
    assert {*network.state_dict()} == {name for name, _ in network.named_parameters()}
    for size in ((4, 4), (8, 6), (4, 4)):
        assert network(torch.randn(1, 1, *size), torch.zeros(1)).shape == (1, 1, *size)
    image = torch.randn(1, 1, 4, 4).expand(1, 1, 4, 4).clone()
    swapped = image.roll(2, dims=3)  # the same patches at other places
    outputs = network(image, torch.zeros(1)), network(swapped, torch.zeros(1)).roll(2, dims=3)
    assert not torch.allclose(*outputs)


def test_positions_of_patches_differ() -> None:
    table = sine_positions(14, 14, 32, torch.device("cpu"))
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1
    assert torch.allclose(table.square().sum(dim=1), torch.full((196,), 16.0))


def test_augmentation_labels_are_added_to_the_embedding() -> None:
    torch.manual_seed(0)
    network = randomized(build_network(composed(*SMALL).model, 1, augmentations=9)).eval()
    x, t, labels = torch.randn(2, 1, 4, 4), torch.tensor([3.0, 9.0]), torch.randn(2, 9)
    told = network(x, t, augmentation=labels)
    assert torch.equal(network(x, t), network(x, t, augmentation=torch.zeros(2, 9)))
    assert not torch.allclose(told, network(x, t), atol=1e-3)
    with torch.no_grad():
        network.embedding.mlp[2].bias += network.augmentation.weight @ labels[0]
    assert torch.allclose(network(x, t)[0], told[0], atol=1e-5)


@pytest.mark.parametrize(("model", "width", "depth", "millions"), [("dit_s", 384, 12, 33), ("dit_b", 768, 12, 130)])
def test_parameters_are_those_of_the_paper(model: str, width: int, depth: int, millions: int) -> None:
    """Count them for latents of 4 channels, 1000 classes and learned variances, as in table 1 of the paper."""
    with torch.device("meta"):
        network = build_network(composed(f"model={model}").model, 4, classes=1000, outputs=2)
    d = width
    block = (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)
    embedding = (256 * d + d) + (d * d + d) + 1001 * d
    ends = (16 * d + d) + (2 * d * d + 2 * d) + (32 * d + 32)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == depth * block + embedding + ends
    assert round(count / 1e6) == millions


def gradients(network: nn.Module, run: nn.Module, *inputs: Tensor) -> list[Tensor]:
    output = run(*inputs)
    return [output, *torch.autograd.grad(output.square().sum(), [*network.parameters()])]


@pytest.mark.parametrize("positions", [pytest.param("sine", marks=pytest.mark.slow), "rotary"])
def test_compiled_network_has_the_same_output_and_gradients(positions: str) -> None:
    torch.manual_seed(0)
    more = [f"model.positions={positions}", "model.qk_norm=true", "model.depth=1"]
    network = randomized(build_network(composed(*SMALL, *more).model, 1, classes=3))
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 9.0]), torch.tensor([0, 3])
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    pairs = zip(gradients(network, network, *inputs), gradients(network, compiled, *inputs), strict=True)
    assert all(torch.allclose(plain, again, rtol=1e-4, atol=1e-4) for plain, again in pairs)
