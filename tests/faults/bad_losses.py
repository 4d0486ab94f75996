"""Run ddpm-train with a non-finite loss at the steps in DDPM_BAD_STEPS, as in 3,10-29 (0 is the first)."""

import os

import torch
from torch import Tensor

from ddpm_cli.cli import train
from ddpm_cli.training.trainer import Trainer


def main() -> None:
    bad_steps: set[int] = set()
    for part in os.environ["DDPM_BAD_STEPS"].split(","):
        first, _, last = part.partition("-")
        bad_steps.update(range(int(first), int(last or first) + 1))
    train_step = Trainer.train_step

    def step_with_bad_loss(self: Trainer) -> tuple[Tensor, Tensor]:
        if self.step not in bad_steps:
            return train_step(self)
        values = self.table.values
        self.table.values = torch.full(values.shape, torch.inf if self.step % 2 else torch.nan)
        try:
            return train_step(self)
        finally:
            self.table.values = values

    Trainer.train_step = step_with_bad_loss  # type: ignore[method-assign]
    train.main()
