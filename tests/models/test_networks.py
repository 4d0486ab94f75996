import itertools
from functools import partial

import pytest
import torch
from torch import nn

from ddpm_cli.config import TrainConfig
from ddpm_cli.models import build_network
from ddpm_cli.models.layers import sinusoidal_embedding
from tests.conftest import TINY, composed

NETWORKS = {
    "unet": ["model=tiny", "model.width=8"],
    "linear": ["model=tiny", "model.width=8", "model.attention=[linear,full]"],
    "patched": [
        "model=tiny",
        "model.width=8",
        "model.patch_size=2",
        "model.multipliers=[1]",
        "model.attention=[none]",
    ],
    "ddpm": [
        "model=ddpm_cifar10",
        "model.width=8",
        "model.groups=4",
        "model.multipliers=[1,2]",
        "model.blocks=1",
        "model.attention=[none,full]",
    ],
    "improved": [
        "model=improved_cifar10",
        "model.width=8",
        "model.groups=4",
        "model.multipliers=[1,2]",
        "model.blocks=1",
        "model.attention=[none,full]",
    ],
    "conv": ["model=conv", "model.width=8", "model.time_dim=8"],
    "dit": ["model=dit_s", "model.width=8", "model.heads=2", "model.depth=2"],
    "rotary": ["model=dit_tiny", "model.width=16", "model.heads=2", "model.depth=2"],
    "ddpmpp": [
        "model=ddpmpp",
        "model.width=8",
        "model.multipliers=[1,2]",
        "model.blocks=1",
        "model.attention=[none,full]",
    ],
}


def randomized(network: nn.Module) -> nn.Module:
    """Add noise to all parameters, because branches initialised to zero have no effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def config_of(name: str, *more: str) -> TrainConfig:
    return composed(*TINY[:1], *NETWORKS[name], *more)


def test_cifar10_network_of_ho_et_al_has_35_7_million_parameters() -> None:
    with torch.device("meta"):
        network = build_network(composed("model=ddpm_cifar10", "dataset=cifar10").model, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307


def test_cifar10_network_of_nichol_and_dhariwal_has_52_5_million_parameters() -> None:
    """Compare with their code for learned variance, three residual blocks and four heads."""
    with torch.device("meta"):
        network = build_network(composed("model=improved_cifar10", "dataset=cifar10").model, 3, outputs=2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 52_546_438


def test_conv_network_has_the_parameters_of_the_text() -> None:
    """Count the parameters layer by layer."""

    def block(dim: int, dim_out: int, time_dim: int = 100) -> int:
        convolutions = 9 * dim * dim_out + dim_out + 9 * dim_out * dim_out + dim_out
        norms = 2 * 2 * dim_out
        mlp = time_dim * 2 * dim + 2 * dim + 2 * dim * dim + dim
        return convolutions + norms + mlp

    expected = block(1, 64) + block(64, 128) + block(128, 256) + block(384, 128) + block(192, 64) + 64 + 1
    network = build_network(composed("model=conv").model, 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_annotated_network_has_2_0_million_parameters() -> None:
    network = build_network(composed("experiment=annotated").model, 1)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 2.0


def test_annotated_network_embeds_t_by_gelu() -> None:
    torch.manual_seed(0)
    network = build_network(composed("experiment=annotated").model, 1)
    first, _, second = network.get_submodule("embedding.mlp").children()
    t = torch.tensor([0, 7, 250])
    expected = second(nn.functional.gelu(first(sinusoidal_embedding(t, 28))))
    assert torch.allclose(network.get_submodule("embedding")(t, None), expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (12, 4)])
def test_output_shape_equals_input_shape(name: str, height: int, width: int) -> None:
    network = build_network(config_of(name).model, 3)
    assert network(torch.randn(2, 3, height, width), torch.tensor([0, 9])).shape == (2, 3, height, width)


@pytest.mark.parametrize("name", NETWORKS)
def test_output_does_not_depend_on_batch_or_memory_format(name: str) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config_of(name).model, 3)).eval()
    x, t = torch.randn(5, 3, 8, 8), torch.tensor([3, 40, 0, 9, 20])
    batched = network(x, t)
    single = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    assert torch.allclose(batched, single, rtol=1e-4, atol=1e-5)
    channels_last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t)
    assert torch.allclose(batched, channels_last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config_of(name).model, 3)).eval()
    x, t = torch.randn(8, 3, 8, 8), torch.randint(0, 50, (8,))
    exact = network(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(x, t)
    assert (rounded - exact).square().mean().sqrt() < 0.02 * exact.std()


@pytest.mark.parametrize("name", NETWORKS)
def test_all_parameters_get_gradients_and_t_has_an_effect(name: str) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config_of(name).model, 1, classes=3))
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor([3, 40, 3, 40]), torch.tensor([0, 1, 2, 3])
    network(x, t, y).square().sum().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [key for key in without if not key.endswith("conv.0.bias") and not key.endswith("conv.4.bias")] == []
    network.eval()
    assert not torch.allclose(network(x, t, y), network(x, t.flip(0), y))


@pytest.mark.parametrize("name", NETWORKS)
def test_class_has_an_effect_and_there_is_a_null_label(name: str) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config_of(name).model, 1, classes=3)).eval()
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([3])
    outputs = [network(x, t, torch.tensor([label])) for label in range(4)]
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(outputs, 2))
    with pytest.raises(IndexError):
        network(x, t, torch.tensor([4]))


@pytest.mark.parametrize("name", NETWORKS)
def test_learned_variance_doubles_the_output_channels(name: str) -> None:
    network = build_network(config_of(name).model, 3, outputs=2)
    assert network(torch.randn(2, 3, 8, 8), torch.tensor([0, 9])).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_time_scale_multiplies_t(name: str) -> None:
    """Check that a time scale of 0.5 has the same output at t = 40 as a time scale of 1 at t = 20."""
    torch.manual_seed(0)
    plain = randomized(build_network(config_of(name).model, 1)).eval()
    halving = build_network(config_of(name, "model.time_scale=0.5").model, 1).eval()
    halving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(halving(x, torch.tensor([40])), plain(x, torch.tensor([20])))
    assert not torch.equal(halving(x, torch.tensor([40])), plain(x, torch.tensor([40])))


@pytest.mark.parametrize("name", NETWORKS)
def test_times_may_be_fractions(name: str) -> None:
    torch.manual_seed(0)
    network = randomized(build_network(config_of(name).model, 1)).eval()
    x = torch.randn(3, 1, 8, 8)
    whole, between = network(x, torch.tensor([0, 2, 9])), network(x, torch.tensor([-0.25, 2.5, 9.75]))
    assert torch.equal(network(x, torch.tensor([0.0, 2.0, 9.0])), whole)
    assert all(not torch.allclose(a, b) for a, b in zip(between, whole, strict=True))


def test_mlp_accepts_points() -> None:
    torch.manual_seed(0)
    config = composed("experiment=swiss_roll", "model.width=8", "model.blocks=2", "model.self_condition=true")
    network = build_network(config.model, 2, classes=3, outputs=2)
    x, t, y = torch.randn(4, 4), torch.tensor([3, 40, 3, 40]), torch.tensor([0, 1, 2, 3])
    output = network(x, t, y)
    assert output.shape == (4, 4)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert not torch.allclose(output, network(x, t.flip(0), y))
    assert not torch.allclose(output, network(x, t, y.flip(0)))


@pytest.mark.parametrize("name", ["ddpm", "dit", "rotary"])
def test_initial_output_is_zero(name: str) -> None:
    network = build_network(config_of(name).model, 1)
    assert not network(torch.randn(1, 1, 8, 8), torch.tensor([5])).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_self_conditioning_doubles_the_input_channels(name: str) -> None:
    network = build_network(config_of(name, "model.self_condition=true").model, 1)
    assert network(torch.randn(1, 2, 8, 8), torch.tensor([5])).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_off_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(config_of(name, "model.dropout=0.5").model, 1)
    randomized(network)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    "name", ["linear", "conv", "ddpmpp", *(pytest.param(x, marks=pytest.mark.slow) for x in ("ddpm", "improved"))]
)
def test_network_compiles_without_graph_breaks(name: str) -> None:
    network = build_network(config_of(name).model, 1)
    report = torch._dynamo.explain(network)(torch.randn(2, 1, 8, 8), torch.tensor([3, 40]))
    assert report.graph_break_count == 0
    assert report.graph_count == 1


@pytest.mark.parametrize("name", ["linear", "ddpm", "dit", "rotary", "ddpmpp"])
def test_gradient_checkpointing_saves_memory_and_changes_nothing(name: str) -> None:
    """Output and gradients have the same bits, dropout included; less is kept for the backward pass."""
    outputs, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        more = ["model.dropout=0.5", f"model.gradient_checkpointing={checkpointing}"]
        network = randomized(build_network(config_of(name, *more).model, 1)).train()
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(partial(_note_size, sizes), lambda tensor: tensor):
            output = network(torch.randn(2, 1, 8, 8), torch.tensor([3, 7]))
        output.square().sum().backward()
        outputs.append([output, *(parameter.grad for parameter in network.parameters())])
        kept.append(sum(sizes.values()))
    assert all(torch.equal(plain, again) for plain, again in zip(*outputs, strict=True))
    assert kept[1] < kept[0] / 2


def _note_size(sizes: dict[int, int], tensor: torch.Tensor) -> torch.Tensor:
    """Record the bytes of a tensor that autograd saves, once for each memory address."""
    if not isinstance(tensor, nn.Parameter):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return tensor
