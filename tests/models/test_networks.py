import pytest
import torch

from ddpm_cli.config import TrainConfig
from ddpm_cli.models import build_network
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
}


def config_of(name: str, *more: str) -> TrainConfig:
    return composed(*TINY[:1], *NETWORKS[name], *more)


def test_the_cifar10_network_of_ho_et_al_has_35_7_million_parameters() -> None:
    with torch.device("meta"):
        network = build_network(composed("model=ddpm_cifar10", "dataset=cifar10").model, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307


def test_the_annotated_network_has_2_0_million_parameters() -> None:
    network = build_network(composed("experiment=annotated").model, 1)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 2.0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (12, 4)])
def test_output_has_the_size_of_the_input(name: str, height: int, width: int) -> None:
    network = build_network(config_of(name).model, 3)
    assert network(torch.randn(2, 3, height, width), torch.tensor([0, 9])).shape == (2, 3, height, width)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns_and_time_matters(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(config_of(name).model, 1)
    with torch.no_grad():  # the branches that start as zeros let nothing through
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x = torch.randn(2, 1, 8, 8)
    network(x, torch.tensor([3, 40])).square().sum().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert not torch.allclose(network(x, torch.tensor([3, 40])), network(x, torch.tensor([40, 3])))


def test_the_ddpm_network_starts_at_zero() -> None:
    network = build_network(config_of("ddpm").model, 1)
    assert not network(torch.randn(1, 1, 8, 8), torch.tensor([5])).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_self_conditioning_doubles_the_input(name: str) -> None:
    network = build_network(config_of(name, "model.self_condition=true").model, 1)
    assert network(torch.randn(1, 2, 8, 8), torch.tensor([5])).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_off_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(config_of(name, "model.dropout=0.5").model, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize("name", ["linear", "ddpm"])
def test_the_network_compiles_without_graph_breaks(name: str) -> None:
    network = build_network(config_of(name).model, 1)
    report = torch._dynamo.explain(network)(torch.randn(2, 1, 8, 8), torch.tensor([3, 40]))
    assert report.graph_break_count == 0
    assert report.graph_count == 1
