from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm_cli.checkpoints.loading import Trained
from ddpm_cli.data.table import Examples, to_float
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.evaluation.run_metrics import val_loss
from tests.conftest import composed

CPU = torch.device("cpu")
IMAGES = Examples(
    torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(40) % 2,
    ["a", "b"],
)


def trained(network: Any, prediction: str = "eps", classes: tuple[str, ...] = ()) -> Trained:
    config = composed("dataset=digits", "schedule=cosine", "schedule.timesteps=20", "sampler.steps=5")
    process = Process(path_of(config.schedule))
    return Trained(Path(), 0, config, nn.Identity(), Denoiser(network, process, prediction), list(classes), CPU)


def predict_zeros(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """Return a prediction of zeros."""
    return torch.zeros_like(x)


def test_predicting_zero_noise_gives_a_loss_of_one() -> None:
    many = Examples(IMAGES.values.repeat(25, 1, 1, 1))
    assert val_loss(trained(predict_zeros), many, 1000, 64) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_perfect_prediction_gives_a_loss_of_zero(prediction: str) -> None:
    """All images are equal, so a network that knows the image can compute the noise from x_t."""
    one = Examples(IMAGES.values[:1].repeat(30, 1, 1, 1))
    x0 = to_float(one.values[:1])
    subject = trained(predict_zeros, prediction)
    process = subject.denoiser.process

    def predict_exactly(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        a = process.at(process.signal, t, x)
        b = process.at(process.sigma, t, x)
        return subject.denoiser.target(x0.expand_as(x), t, (x - a * x0) / b)

    subject = replace(subject, denoiser=replace(subject.denoiser, network=predict_exactly))
    assert val_loss(subject, one, 30, 8) < 1e-8


def test_examples_and_noise_do_not_depend_on_the_run_or_the_batch_size() -> None:
    seen: list[Tensor] = []

    def record_inputs(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append(torch.cat([x.flatten(1), t.view(-1, 1)], dim=1))
        return torch.zeros_like(x)

    whole = val_loss(trained(record_inputs), IMAGES, 40, 40)
    first = torch.cat(seen)
    assert sorted(first[:, -1].tolist()) == sorted(t for t in range(20) for _ in range(2))
    seen.clear()
    assert val_loss(trained(record_inputs, "eps"), IMAGES, 40, 7) == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(torch.cat(seen), first, rtol=0, atol=0)


def test_conditional_network_receives_the_labels() -> None:
    received: list[Tensor] = []

    def record_labels(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        received.append(y)
        return x

    val_loss(trained(record_labels, classes=("a", "b")), IMAGES, 40, 16)
    assert torch.cat(received).sum() == 20


def test_n_above_the_number_of_examples_uses_all() -> None:
    assert val_loss(trained(predict_zeros), IMAGES, 1000, 64) == val_loss(trained(predict_zeros), IMAGES, 40, 64)
