import math

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_cli.training.ema import Ema, PowerAverages, ema_decay
from ddpm_cli.training.muon import Muon
from ddpm_cli.training.optimizer import build_optimizer, learning_rate
from tests.conftest import composed


def test_decay_is_a_function_of_the_step() -> None:
    assert ema_decay(1, 0.999, True, 0) == pytest.approx(2 / 11)
    assert ema_decay(90, 0.999, True, 0) == pytest.approx(91 / 100)
    assert ema_decay(10**6, 0.999, True, 0) == 0.999
    assert ema_decay(1, 0.999, False, 0) == 0.999
    assert [ema_decay(step, 0.9999, False, 2000) for step in (1, 1999, 2000)] == [0, 0, 0.9999]


def test_parameters_are_averaged_and_buffers_are_copied() -> None:
    network = nn.BatchNorm1d(1)
    ema = Ema(network)
    with torch.no_grad():
        for value in (1.0, 2.0):
            network.weight.fill_(value)
            network.running_mean.fill_(value)
            ema.update(network, 0.9, torch.tensor(True))
    assert ema.network.weight.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 1) + 0.1 * 2)
    assert ema.network.running_mean.item() == 2
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())


def test_warm_up_then_constant_or_cosine() -> None:
    train = composed("train.lr=0.1", "train.warmup_steps=10").train
    assert [learning_rate(step, train, 100) for step in (0, 4, 9, 10, 99)] == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.1])
    cosine = composed("train.lr=0.1", "train.warmup_steps=10", "train.lr_decay=cosine").train
    assert learning_rate(55, cosine, 100) == pytest.approx(0.05)
    assert learning_rate(99, cosine, 100) == pytest.approx(0.05 * (1 + math.cos(math.pi * 89 / 90)))


@pytest.mark.parametrize(("name", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_optimizer_class(name: str, cls: type) -> None:
    train = composed(f"train.optimizer={name}", "train.weight_decay=0.3", "train.betas=[0.8,0.9]").train
    optimizer = build_optimizer(train, nn.Linear(1, 1), torch.float32)
    assert type(optimizer) is cls
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def test_a_skipped_step_leaves_the_average_unchanged() -> None:
    network = nn.Linear(3, 2)
    ema = Ema(network)
    before = [parameter.clone() for parameter in ema.network.parameters()]
    with torch.no_grad():
        network.weight.add_(1)
    ema.update(network, 0.5, torch.tensor(False))
    assert all(torch.equal(old, new) for old, new in zip(before, ema.network.parameters(), strict=True))
    ema.update(network, 0.5, torch.tensor(True))
    assert torch.allclose(ema.network.weight, before[0] + 0.5)


def test_power_averages_are_weighted_sums() -> None:
    """After t steps, the weight of step s is (s**(gamma + 1) - (s - 1)**(gamma + 1)) / t**(gamma + 1)."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    averages = PowerAverages([0.05, 0.1, 0.25], network)
    history = []
    for step in range(1, 41):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3))
        history.append(network.weight.detach().double().numpy().copy())
        averages.update(network, step, torch.tensor(True))
    steps = np.arange(1, 41, dtype=np.float64)
    for gamma, average in zip((16.972199, 6.937204, 0.719824), averages.tensors, strict=True):
        weights = (steps ** (gamma + 1) - (steps - 1) ** (gamma + 1)) / 40 ** (gamma + 1)
        expected = np.tensordot(weights, np.stack(history), 1)
        assert average["weight"].double().numpy() == pytest.approx(expected, abs=2e-5)


def test_a_skipped_step_leaves_the_power_averages_unchanged() -> None:
    network = nn.Linear(3, 2)
    averages = PowerAverages([0.05, 0.1], network)
    averages.update(network, 1, torch.tensor(True))
    before = averages.state(torch.clone)
    with torch.no_grad():
        network.weight.add_(1)
    averages.update(network, 2, torch.tensor(False))
    assert all(torch.equal(before[i][name], x) for i in (0, 1) for name, x in averages.tensors[i].items())
    averages.update(network, 2, torch.tensor(True))
    assert not torch.equal(before[0]["weight"], averages.tensors[0]["weight"])


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_only_matrices_and_filters_decay(name: str) -> None:
    """With zero gradients, weight decay alone changes the parameters under AdamW and Muon."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4), nn.Linear(4, 4), nn.Embedding(3, 4))
    train = composed(f"train.optimizer={name}", "train.weight_decay=0.5", "train.lr=0.1").train
    optimizer = build_optimizer(train, network, torch.float32)
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    for parameter in network.parameters():
        nn.init.ones_(parameter) if parameter.ndim == 1 else None
        parameter.grad = torch.zeros_like(parameter)
    ones = {key for key, parameter in network.named_parameters() if parameter.ndim == 1}
    optimizer.step()
    decayed = {"0.weight", "2.weight"}
    for key, parameter in network.named_parameters():
        expected = torch.ones_like(parameter) if key in ones else before[key]
        assert torch.equal(parameter, expected) == (key not in decayed), key
