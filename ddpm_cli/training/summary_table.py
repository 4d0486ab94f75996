"""The table that `ddpm-train` prints before the first step."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_cli.config import TrainConfig
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.devices import precision_name
from ddpm_cli.sampling.build import network_of
from ddpm_cli.sampling.sample_generator import warn_of_few_steps, warn_of_sampler
from ddpm_cli.tracking.terminal import status
from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)


def start_lines(trainer: Trainer, folder: Path, weights: str = "") -> dict[str, str]:
    """Return the table at the start of a run, which takes seconds to compute; an empty one on ranks other than 0."""
    if not collectives.is_rank_zero():
        return {}
    with status("counting the operations of the network"):
        return {**start_table(trainer), **({"weights": weights} if weights else {}), "folder": str(folder)}


def log_start(trainer: Trainer, lines: Mapping[str, str]) -> None:
    """Log the table at the start of a run."""
    for name, text in lines.items():
        for i, line in enumerate(text.splitlines()):
            log.info("%-11s%s", "" if i else name, line)
    config = trainer.config
    warn_of_few_steps(config.sampler, config.variance, config.schedule.timesteps)
    warn_of_sampler(config.sampler, config.loss)
    if config.loss.tunes and config.init is None and trainer.step == 0:
        log.warning("loss=%s: tunes a trained network; init=<run> starts from one, which is faster", config.loss.name)


def start_table(trainer: Trainer) -> dict[str, str]:
    """Return the lines of the table by their names."""
    config, train = trainer.config, trainer.config.train
    size = "x".join(map(str, config.dataset.shape))
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    gflops = _gflops(config, trainer.classes)
    classes = f"\nconditioned on {len(trainer.classes)} classes" if trainer.classes else ""
    epochs = float(trainer.timeline.epochs(trainer.steps))
    origin = "".join(f"\n{text}" for text in (trainer.table.source, trainer.table.counts) if text)
    first = f"steps {trainer.step} to {trainer.steps}" if trainer.step else f"{trainer.steps} steps"
    return {
        "dataset": f"{config.dataset.name}: {len(trainer.table)} examples of {size}{origin}",
        "network": f"{config.model.name}: {parameters / 1e6:.2f}M parameters, {gflops:.3g} GFLOPs per image{classes}",
        "schedule": f"{config.schedule.name}, T={config.schedule.timesteps}",
        "loss": f"{config.loss.name}, prediction={config.prediction}, variance={config.variance}",
        "device": str(trainer.device),
        "precision": precision_name(train.precision, trainer.device),
        "training": f"{first} of {train.batch_size} examples, {epochs:.3g} epochs in all",
    }


def count_flops(network: nn.Module, shape: tuple[int, ...], conditional: bool) -> int:
    """Return the floating-point operations of a forward pass of a network on the meta device, which computes nothing.

    They are those of one example of `shape` (C, ...), with a class label if `conditional`. A multiply-add counts as
    two; norms and activations are not counted.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        label = torch.zeros(1, dtype=torch.long)
        network(torch.empty(1, *shape), label, label if conditional else None)
    return int(counter.get_total_flops())


def _gflops(config: TrainConfig, classes: list[str]) -> float:
    channels, *size = config.dataset.shape
    with torch.device("meta"):
        network = network_of(config, classes).eval()
    shape = (channels * (2 if config.model.self_condition else 1), *size)
    return count_flops(network, shape, conditional=bool(classes)) / 1e9
