"""ddpm-train: start a training run from a config, or resume one from a checkpoint."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.cli.app import Command, run_command
from ddpm_cli.cli.app.sweep import check_same_overrides, typed_overrides
from ddpm_cli.config import TrainConfig
from ddpm_cli.distributed.requeue import is_restarted
from ddpm_cli.errors import UserError
from ddpm_cli.sweeps.jobs_csv import jobs_of
from ddpm_cli.sweeps.pruning import Pruner

log = logging.getLogger(__name__)

USAGE = """
ddpm-train trains a denoising diffusion model on a dataset.

  ddpm-train                                        Fashion-MNIST, a small U-Net, the best available device
  ddpm-train experiment=quickstart                  good pictures of clothes in minutes on a CPU
  ddpm-train dataset=image_folder dataset.root=/pictures dataset.image_size=32
  ddpm-train devices=4                              several devices at once; devices=auto uses all
  ddpm-train -m schedule=linear,cosine loss=l1,l2   a run for each combination
  ddpm-train -m … sweep.resume=outputs/sweep/…      the missing and unfinished runs of a sweep
  ddpm-train resume=outputs/train/…                 continue a run that was stopped
"""


def main() -> None:
    """Entry point of the console script."""
    run_command(COMMAND)


def check(config: TrainConfig) -> None:
    """Raise `UserError` for a config that cannot run, as far as that is known without the data."""
    from ddpm_cli.training.start import check_config

    check_config(config)


def run(config: TrainConfig, folder: Path) -> float | None:
    """Train in `folder`, or resume a run in its own folder; return what train.report asks for.

    A job of a sweep to resume, or of SLURM that was put back into the queue, continues what `folder` contains.
    """
    from ddpm_cli.training.start import TrainingJob, launch_training

    _check_sweep()
    overrides, pruner = typed_overrides(), _pruner(config)
    if config.sweep.resume is not None:
        _check_job(config, folder, overrides)
    elif not _is_requeued(config, folder, overrides):
        changes = tuple(HydraConfig.get().overrides.task)
        return launch_training(TrainingJob(config, folder, overrides, config.resume, changes, pruner))
    job = jobs_of(_sweep_folder()).get(HydraConfig.get().job.num) if _is_in_sweep() else None
    if job is not None and job.status in ("done", "pruned"):
        log.info("job %d is %s", job.job, "finished" if job.status == "done" else job.status)
        return job.value
    started = RunFolder(folder).last_checkpoint.is_file()
    return launch_training(TrainingJob(config, folder, overrides, str(folder) if started else None, (), pruner))


def _check_sweep() -> None:
    """Raise `UserError` if sweep=… was typed for a single run."""
    for text in HydraConfig.get().overrides.task:
        if text.startswith("sweep=") and text != "sweep=null" and not _is_in_sweep():
            raise UserError(f"{text}: chooses the runs of a sweep; add -m, or leave it out")


def _pruner(config: TrainConfig) -> Pruner | None:
    """Return what ends this job of a sweep early, if anything does. Raise `UserError` if this is no such job."""
    if config.sweep.prune is None:
        return None
    if not _is_in_sweep():
        raise UserError(f"sweep.prune={config.sweep.prune}: compares the runs of a sweep; add -m, or leave it out")
    return Pruner(_sweep_folder(), HydraConfig.get().job.num, config.sweep, config.train, config.device)


def _check_job(config: TrainConfig, folder: Path, now: list[str]) -> None:
    """Raise `UserError` if this is no job of a sweep to resume, or if its overrides have changed."""
    if not _is_in_sweep():
        raise UserError(f"sweep.resume={config.sweep.resume}: resumes a sweep; add -m and the overrides of the sweep")
    number, run = HydraConfig.get().job.num, RunFolder(folder)
    if run.overrides.is_file():
        check_same_overrides(_sweep_folder(), number, run.read_overrides(), now)


def _is_requeued(config: TrainConfig, folder: Path, overrides: list[str]) -> bool:
    """Return whether this job of SLURM is started again and `folder` has its run."""
    run = RunFolder(folder)
    return is_restarted() and config.resume is None and run.overrides.is_file() and run.read_overrides() == overrides


def _sweep_folder() -> Path:
    """Return the folder of the sweep, which hydra.sweep.subdir may put jobs at any depth of."""
    return Path(HydraConfig.get().sweep.dir)


def _is_in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


COMMAND = Command("train", USAGE, TrainConfig, check, run)
