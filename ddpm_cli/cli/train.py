"""ddpm-train: a run from a config, or the rest of one from its last checkpoint."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ddpm_cli.cli.command import claim, launch, log_into
from ddpm_cli.config import TrainConfig, train_config
from ddpm_cli.errors import UserError, one_of
from ddpm_cli.options import ClassLabels, ImageDataset

log = logging.getLogger(__name__)

USAGE = """
ddpm-train learns to make images like those of a dataset, by denoising diffusion.

  ddpm-train                                        Fashion-MNIST, a small U-Net, the best device there is
  ddpm-train experiment=quickstart                  pictures of clothes in minutes on a CPU
  ddpm-train dataset=image_folder dataset.root=/pictures dataset.image_size=32
  ddpm-train -m schedule=linear,cosine loss=l1,l2   a run for each combination
  ddpm-train resume=outputs/train/…                 go on with a run that was stopped
"""

MAY_CHANGE = ("train.", "device", "compile", "dataset.root")
"""Keys that may be given beside resume=; all others are the run's own."""


def main() -> None:
    """The console script."""
    launch("train", USAGE, TrainConfig, check, run)


def check(config: TrainConfig) -> None:
    """Raise `UserError` for what can be known before any data is read, and needs torch to be known."""
    from ddpm_cli.diffusion.schedules import betas_of
    from ddpm_cli.training.devices import resolve_device

    resolve_device(config.device)
    betas_of(config.schedule)
    if config.resume is not None:
        _checkpoint_to_resume(config.resume)


def run(config: TrainConfig, folder: Path) -> float:
    """Train as `config` says into `folder`; returns the last loss logged."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ddpm_cli.data.sources import check_labels, load_examples
    from ddpm_cli.data.table import Table
    from ddpm_cli.training.checkpoint import load_checkpoint
    from ddpm_cli.training.devices import resolve_device
    from ddpm_cli.training.trainer import Trainer

    state, resume = None, config.resume
    if resume is not None:
        path = _checkpoint_to_resume(resume)
        folder, state = path.parent.parent, load_checkpoint("resume", path)
        config = _resumed_config(config, state["config"])
    device = resolve_device(config.device)
    examples = load_examples(config.dataset, train=True)
    if isinstance(config.conditioning, ClassLabels):
        check_labels(config.dataset, examples)
        if state is not None and state["classes"] != examples.classes:
            raise UserError(
                f"resume={resume}: its classes are {one_of(state['classes'])}, those of the data now "
                f"{one_of(examples.classes)}; give it the data that it was trained on"
            )
    flip = isinstance(config.dataset, ImageDataset) and config.dataset.flip
    trainer = Trainer(config, Table(examples, flip, config.train.seed, device), device)
    if state is None:
        claim(folder)
        OmegaConf.save(OmegaConf.create(asdict(config)), folder / ".hydra" / "config.yaml")
    else:
        _restore(trainer, state, str(resume))
    log_into(folder / "train.log")
    _describe(trainer, folder)
    with logging_redirect_tqdm():
        logging.getLogger().handlers[-1].setLevel(logging.INFO)  # the level that the redirection forgets
        loss = trainer.train(folder)
    log.info("done; ddpm-sample ckpt=%s makes more images", folder)
    return loss


def _checkpoint_to_resume(resume: str) -> Path:
    """The checkpoint in a run folder that `resume` names."""
    from ddpm_cli.training.checkpoint import find_checkpoint

    path = find_checkpoint("resume", resume)
    if path.parent.name != "checkpoints":
        raise UserError(f"resume={resume}: must be a run folder, or a checkpoint in the checkpoints/ of one")
    return path


def _resumed_config(typed: TrainConfig, own: TrainConfig) -> TrainConfig:
    """The run's own config, with what was typed beside `resume=` where that may change."""
    merged = OmegaConf.create(asdict(own))
    now = OmegaConf.create(asdict(typed))
    for override in HydraConfig.get().overrides.task:
        key = override.split("=")[0].lstrip("+~")
        if key == "resume":
            continue
        if not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{override}: not with resume=, which goes on with the run's own config; "
                "only device, compile, dataset.root and train.* may change"
            )
        OmegaConf.update(merged, key, OmegaConf.select(now, key))
    merged.resume = None  # as in a run never stopped
    return train_config(OmegaConf.to_container(merged))  # type: ignore[arg-type]  # a dict


def _restore(trainer: Any, state: dict[str, Any], resume: str) -> None:
    try:
        trainer.restore(state)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"resume={resume}: its state does not fit the network in its config; name an earlier checkpoint"
        ) from error


def _describe(trainer: Any, folder: Path) -> None:
    """A few lines at the start: what is trained on what, where it goes."""
    from ddpm_cli.training.generate import warn_of_few_steps

    config = trainer.config
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    size = "x".join(map(str, config.dataset.shape))
    log.info("dataset   %s, %d examples of %s", config.dataset.name, len(trainer.table), size)
    told = f", is told {len(trainer.classes)} classes" if trainer.classes else ""
    log.info(
        "network   %s, %.2fM parameters, predicts %s%s",
        config.model.name,
        parameters / 1e6,
        config.prediction,
        told,
    )
    log.info("schedule  %s, T=%d; loss %s", config.schedule.name, config.schedule.timesteps, config.loss.name)
    log.info("training  steps %d to %d on %s, %s", trainer.step, trainer.steps, trainer.device, trainer.dtype)
    log.info("folder    %s", folder)
    warn_of_few_steps(config.sampler, config.variance, config.schedule.timesteps)
