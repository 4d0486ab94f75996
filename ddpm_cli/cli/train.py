"""ddpm-train: start a training run from a config, or resume one from a checkpoint."""

import logging
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.cli.app import Command, run_command
from ddpm_cli.cli.app.sweep import typed_overrides
from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.sweeps.jobs_csv import SweepJob, jobs_of

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
    """Train in `folder`, or resume a run in its own folder; return what train.report asks for."""
    from ddpm_cli.training.start import TrainingJob, launch_training

    overrides = typed_overrides()
    if config.sweep.resume is None:
        changes = tuple(HydraConfig.get().overrides.task)
        return launch_training(TrainingJob(config, folder, overrides, config.resume, changes))
    job = _row_of_job(config, folder)
    if job is not None and job.status == "done":
        log.info("job %d is finished", job.job)
        return job.value
    started = RunFolder(folder).last_checkpoint.is_file()
    return launch_training(TrainingJob(config, folder, overrides, str(folder) if started else None))


def _row_of_job(config: TrainConfig, folder: Path) -> SweepJob | None:
    """Return the row in jobs.csv of a job of the sweep to resume, None if it has none.

    Raise `UserError` if this is no sweep, or if the overrides of the job have changed.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        raise UserError(f"sweep.resume={config.sweep.resume}: resumes a sweep; add -m and the overrides of the sweep")
    number, run = HydraConfig.get().job.num, RunFolder(folder)
    now = typed_overrides()
    before = run.read_overrides() if run.overrides.is_file() else now
    if before != now:
        raise UserError(
            f"sweep.resume={config.sweep.resume}: job {number} of the sweep was {shlex.join(before)}, and is now "
            f"{shlex.join(now)}; type the command of the sweep"
        )
    return jobs_of(folder.parent).get(number)


COMMAND = Command("train", USAGE, TrainConfig, check, run)
