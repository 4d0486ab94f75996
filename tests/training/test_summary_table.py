"""The summary table at the start of a run, and the FLOPs it counts."""

import pytest
import torch
from torch import Tensor, nn

from ddpm_cli.training.summary_table import count_flops, start_table
from tests.conftest import TINY, TINY_POINTS, composed
from tests.training.test_trainer import trainer_of


class Convolutions(nn.Module):
    """A 3x3 convolution (5 channels), a 5x5 one of stride 2 (2 channels) and, given a class, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 2, 5, padding=2, stride=2)
        self.table = nn.Embedding(4, 7)
        self.linear = nn.Linear(7, 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        x = self.second(self.first(x).relu())
        return x if y is None else x + self.linear(self.table(y))[:, :, None, None]


def test_flops_of_convolutions_match_the_formula() -> None:
    """A convolution takes 2 C_in C_out k k H W operations, where H and W are the output size."""
    with torch.device("meta"):
        network = Convolutions()
    wanted = 2 * 3 * 5 * 3 * 3 * 12 * 16 + 2 * 5 * 2 * 5 * 5 * 6 * 8
    assert count_flops(network, (3, 12, 16), conditional=False) == wanted
    assert count_flops(network, (3, 12, 16), conditional=True) == wanted + 2 * 7 * 2


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            [*TINY, "train.steps=5", "conditioning=class", "loss=huber", "prediction=v", "schedule=cosine"],
            {
                "dataset": "digits: 20 examples of 1x8x8",
                "schedule": "cosine, T=50",
                "loss": "huber, prediction=v, variance=fixed_small",
                "device": "cpu",
                "precision": "fp32",
                "training": "5 steps of 8 examples, 2 epochs in all",
            },
        ),
        ([*TINY_POINTS, "train.precision=bf16"], {"dataset": "swiss_roll: 20 examples of 2", "precision": "bf16"}),
    ],
    ids=["images", "points"],
)
def test_start_table_describes_the_run(overrides: list[str], lines: dict[str, str]) -> None:
    last = {override.split("=")[0]: override for override in overrides}
    trainer = trainer_of(composed(*last.values()))
    table = start_table(trainer)
    assert table | lines == table
    count = sum(parameter.numel() for parameter in trainer.network.parameters())
    assert f"{count / 1e6:.2f}M parameters" in table["network"]
    assert ("conditioned on 10 classes" in table["network"]) == ("conditioning=class" in overrides)


@pytest.mark.parametrize("more", ["model.self_condition=true", "variance=learned_range", "conditioning=class"])
def test_counting_flops_draws_no_random_numbers(more: str) -> None:
    loss = ["loss=hybrid"] if "learned" in more else []
    trainer = trainer_of(composed(*TINY, more, *loss))
    before = torch.get_rng_state()
    assert "GFLOPs per image" in start_table(trainer)["network"]
    assert torch.equal(torch.get_rng_state(), before)
