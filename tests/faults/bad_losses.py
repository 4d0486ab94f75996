"""ddpm-train whose loss is not finite at some steps: those in DDPM_SICK, as in 3,10-29 (0 is the first)."""

import os

import torch
from torch import Tensor

from ddpm_cli.cli import train
from ddpm_cli.training.trainer import Trainer


def main() -> None:
    sick: set[int] = set()
    for part in os.environ["DDPM_SICK"].split(","):
        first, _, last = part.partition("-")
        sick.update(range(int(first), int(last or first) + 1))
    train_step = Trainer.train_step

    def poisoned(self: Trainer) -> tuple[Tensor, Tensor]:
        if self.step not in sick:
            return train_step(self)
        healthy = self.table.values
        self.table.values = torch.full(healthy.shape, torch.inf if self.step % 2 else torch.nan)
        try:
            return train_step(self)
        finally:
            self.table.values = healthy

    Trainer.train_step = poisoned  # type: ignore[method-assign]
    train.main()
