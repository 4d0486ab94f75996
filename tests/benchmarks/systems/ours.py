"""ddpm-cli itself: experiment=annotated as ddpm-train builds it."""

from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ddpm_cli.cli.command import register_schemas
from ddpm_cli.config import TrainConfig
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Table
from ddpm_cli.training.loop import Loop
from ddpm_cli.training.run_checkpoints import save_checkpoint
from ddpm_cli.training.trainer import Trainer
from tests.benchmarks.data import overrides

CPU = torch.device("cpu")


def composed(*typed: str) -> Any:
    """The config of `ddpm-train <typed>`."""
    GlobalHydra.instance().clear()
    register_schemas("train", TrainConfig)
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        return OmegaConf.to_object(hydra.compose("train", list(typed)))


def table_of(data: Path) -> Table:
    config = composed("experiment=annotated", *overrides(data))
    return Table(load_examples(config.dataset, train=True), config.dataset.flip, config.train.seed, CPU)


class Ours:
    """A run of ddpm-train, a step at a time; the loss is read at each, though ddpm-train does so once in ten."""

    def __init__(self, data: Path, batch_size: int, precision: str) -> None:
        typed = [f"train.batch_size={batch_size}", f"train.precision={precision}", "device=cpu"]
        config = composed("experiment=annotated", *typed, *overrides(data))
        self.trainer = Trainer(config, table_of(data), CPU)
        self.network = self.trainer.network.train()

    def step(self) -> None:
        loss, _ = self.trainer.train_step()
        loss.item()

    def save(self, folder: Path) -> None:
        save_checkpoint(folder, Loop(self.trainer, folder, "").state())
        (folder / "checkpoints" / "last.pt").unlink()  # the same file under another name
