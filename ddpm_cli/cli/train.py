"""ddpm-train: a run from a config, or the rest of one from its last checkpoint."""

import logging
import shlex
from importlib.util import find_spec
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ddpm_cli.checkpoints.run_folder import NOTES
from ddpm_cli.cli.app import launch, worker_group
from ddpm_cli.cli.sweep import jobs_of, typed_overrides
from ddpm_cli.config import ImageDataset, ImageFolder, TrainConfig
from ddpm_cli.distributed.launch import WorkerFailed, run_distributed
from ddpm_cli.errors import Failure, UserError
from ddpm_cli.training.start import TrainingJob, check_parts, checkpoint_to_resume, load_for_resume, resume_hint, train

log = logging.getLogger(__name__)

USAGE = """
ddpm-train learns to make images like those of a dataset, by denoising diffusion.

  ddpm-train                                        Fashion-MNIST, a small U-Net, the best device there is
  ddpm-train experiment=quickstart                  pictures of clothes in minutes on a CPU
  ddpm-train dataset=image_folder dataset.root=/pictures dataset.image_size=32
  ddpm-train devices=4                              or devices=auto: on several devices at once
  ddpm-train -m schedule=linear,cosine loss=l1,l2   a run for each combination
  ddpm-train -m … sweep.resume=outputs/sweep/…      what is missing of a sweep that was stopped
  ddpm-train resume=outputs/train/…                 go on with a run that was stopped
"""


def main() -> None:
    """The console script."""
    launch("train", USAGE, TrainConfig, check, run)


def check(config: TrainConfig) -> None:
    """Raise `UserError` for what can be known before any data is read, and needs torch to be known."""
    from ddpm_cli.diffusion.schedules import betas_of
    from ddpm_cli.distributed.devices import processes_of
    from ddpm_cli.tracking.loggers import check_loggers

    count = processes_of(config.devices, config.device)
    betas_of(config.schedule)
    check_loggers(config)
    _check_report(config)
    if config.resume is not None:
        checkpoint_to_resume(config.resume)
        return
    check_parts(config, count * config.distributed.nnodes)
    if isinstance(config.dataset, ImageFolder):
        config.dataset.check_root()


def run(config: TrainConfig, folder: Path) -> float | None:
    """Train as `config` says into `folder`, or go on with a run in its own; returns what train.report asks for."""
    if config.sweep.resume is not None:
        return _again(config, folder)
    return _begun(
        TrainingJob(config, folder, typed_overrides(), config.resume, tuple(HydraConfig.get().overrides.task))
    )


def _begun(job: TrainingJob) -> float | None:
    """A job, in as many processes as its config says, or that of the run that it goes on with."""
    config = job.config if job.resume is None else load_for_resume(job.config, job.resume, job.changes)[1]["config"]
    try:
        return run_distributed(train, (job,), worker_group(config))
    except WorkerFailed as error:
        folder = job.folder if job.resume is None else checkpoint_to_resume(job.resume).parent.parent
        raise Failure(f"{error}; {resume_hint(folder)}") from error


def _again(config: TrainConfig, folder: Path) -> float | None:
    """A job of the sweep sweep.resume: what it returned if it is done, else the rest of it."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        raise UserError(f"sweep.resume={config.sweep.resume}: goes on with a sweep; add -m and what was swept")
    number, noted = HydraConfig.get().job.num, folder / NOTES / "overrides.yaml"
    before = yaml.safe_load(noted.read_text()) if noted.is_file() else typed_overrides()
    if before != typed_overrides():
        raise UserError(
            f"sweep.resume={config.sweep.resume}: its job {number} was {shlex.join(before)}, and would be "
            f"{shlex.join(typed_overrides())} now; type the command of that sweep"
        )
    job = jobs_of(folder.parent).get(number)
    if job is not None and job.status == "done":
        log.info("job %d is done", number)
        return job.value
    begun = (folder / "checkpoints" / "last.pt").is_file()
    return _begun(TrainingJob(config, folder, typed_overrides(), str(folder) if begun else None))


def _check_report(config: TrainConfig) -> None:
    """Raise `UserError` where a run could not report at its end what train.report asks for."""
    report = config.train.report
    if report not in ("fd_classifier", "fid"):
        return
    if not isinstance(config.dataset, ImageDataset):
        raise UserError(
            f"train.report={report}: compares images, and dataset={config.dataset.name} has points; use nll"
        )
    if find_spec("torch_fidelity") is None:
        raise UserError(f"train.report={report}: needs torch-fidelity; pip install 'ddpm-cli[eval]'")
    if report == "fid":
        from ddpm_cli.distributed.devices import resolve_device
        from ddpm_cli.evaluation.fidelity import extractors

        extractors(["fid"], None, resolve_device("cpu"))  # fetched now, rather than missed at the end
