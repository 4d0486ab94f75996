"""ddpm-cli: runs as in ddpm-train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ddpm_cli.checkpoints.run_checkpoints import save_checkpoint
from ddpm_cli.cli.app import register_schemas
from ddpm_cli.config import TrainConfig
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Table
from ddpm_cli.training.loop import Loop
from ddpm_cli.training.signals import Signals
from ddpm_cli.training.trainer import Trainer
from tests.benchmarks.data import overrides

CPU = torch.device("cpu")


def composed(*typed: str) -> Any:
    """Return the config of `ddpm-train <typed>`."""
    GlobalHydra.instance().clear()
    register_schemas("train", TrainConfig)
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        return OmegaConf.to_object(hydra.compose("train", list(typed)))


def table_of(data: Path, typed: Sequence[str] = ("experiment=annotated",)) -> Table:
    config = composed(*typed, *overrides(data))
    return Table(load_examples(config.dataset, train=True), config.dataset.flip, config.train.seed, CPU)


class Ours:
    """The run of `ddpm-train <typed> device=cpu`, one step per call.

    The loss is read at each step, which is more often than in ddpm-train.
    """

    def __init__(self, data: Path, typed: Sequence[str]) -> None:
        config = composed(*typed, *overrides(data), "device=cpu")
        self.trainer = Trainer(config, table_of(data, typed), CPU)
        self.network = self.trainer.network.train()

    def step(self) -> None:
        loss, _ = self.trainer.train_step()
        loss.item()

    def save(self, folder: Path) -> None:
        save_checkpoint(folder, Loop(self.trainer, folder, "", Signals()).state())
        (folder / "checkpoints" / "last.pt").unlink()  # a hard link to the same file
