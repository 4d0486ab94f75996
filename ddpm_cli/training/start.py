"""Start or resume a training run, in this process or in several."""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from ddpm_cli.averages.snapshots import move_later_snapshots
from ddpm_cli.checkpoints.notes import key_of, note_resume, note_start
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint, move_later_checkpoints
from ddpm_cli.checkpoints.run_folder import RunFolder, claimed, log_into, reopened
from ddpm_cli.checkpoints.sharded import SHARDED, check_supported
from ddpm_cli.config import MEASURED, ClassLabels, Ect, EdmWeighting, ImageDataset, TrainConfig, UserImages
from ddpm_cli.config.objective import LEAST_SIGMA_DATA
from ddpm_cli.data.sources import check_labels, check_trained, open_examples
from ddpm_cli.data.stream import batches_of
from ddpm_cli.data.table import Batches, fingerprint, numbered_by
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import check_start
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.devices import processes_of, resolve_device
from ddpm_cli.distributed.launch import WorkerFailed, run_distributed, worker_group
from ddpm_cli.errors import Failure, Stopped, UserError, check
from ddpm_cli.evaluation.run_metrics import check_metrics, final_metric
from ddpm_cli.sampling.milestone import Milestone
from ddpm_cli.shell import override
from ddpm_cli.tracking.loggers import check_loggers
from ddpm_cli.tracking.terminal import status
from ddpm_cli.training.loop import Loop
from ddpm_cli.training.resume import (
    PATH_KEYS,
    check_same_data,
    checkpoint_to_resume,
    config_to_resume,
    config_with_init,
    folder_to_resume,
    load_for_resume,
    log_format,
    log_resume,
    resume_hint,
    weights_to_start_from,
)
from ddpm_cli.training.signals import Signals
from ddpm_cli.training.summary_table import log_start, start_lines
from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """What each process of a run needs to know.

    Attributes:
        config: the config as typed.
        folder: the folder of a new run.
        typed: the overrides, to be written to the run folder.
        resume: the run or checkpoint to resume, if any.
        changes: the overrides that change the config of the resumed run.
        on_milestone: see `Loop`. With several processes it must be a function that can be pickled.
    """

    config: TrainConfig
    folder: Path
    typed: list[str]
    resume: str | None = None
    changes: tuple[str, ...] = ()
    on_milestone: Callable[[Milestone], bool | None] | None = None


def check_config(config: TrainConfig) -> None:
    """Raise `UserError` for a config that cannot run, as far as that is known without the data."""
    count = processes_of(config.devices, config.device)
    path = path_of(config.schedule)
    check_loggers(config)
    if config.checkpoint.sharded:
        check_supported()
    if config.resume is not None:
        checkpoint_to_resume(config.resume)
        return
    _check_metrics(config)
    if config.init is None:
        check_start(Process(path), config.sampler)
    else:  # whose schedule the run may take, see `launch_training`
        find_checkpoint("init", config.init)
    _check_batch_size(config, count * config.distributed.nnodes)
    if isinstance(config.dataset, UserImages):
        config.dataset.check_root()


def launch_training(job: TrainingJob) -> float | None:
    """Run `train` in as many processes as the config asks for, or that of the run to resume."""
    config = job.config if job.resume is None else config_to_resume(job.config, job.resume, job.changes)
    if job.resume is None and config.init is not None:
        config = config_with_init(config, job.typed)
        job = replace(job, config=config)
        check_start(Process(path_of(config.schedule)), config.sampler)
    group = worker_group(config.devices, config.device, config.threads, config.distributed)
    try:
        return run_distributed(train, (job,), group)
    except WorkerFailed as error:
        folder = job.folder if job.resume is None else folder_to_resume(job.resume)
        raise Failure(f"{error}; {resume_hint(folder)}") from error


def train(job: TrainingJob) -> float | None:
    """Start or resume a run in this process; with several processes, all ranks call it.

    Return what train.report asks for, or the last loss; None on ranks other than 0.
    """
    job = _agree_on_job(job)
    config, folder, state = job.config, job.folder, None
    with ExitStack() as stack:
        if job.resume is not None:
            folder = collectives.on_rank_zero(lambda: folder_to_resume(str(job.resume)))
            collectives.on_rank_zero(lambda: stack.enter_context(reopened("resume", folder)))
            state = _state_of_rank_zero(job)
            config = state["config"]
        device = resolve_device(config.device)
        table, data = _load_data(config, device, str(job.resume), state)
        if state is None:
            config = _with_sigma_data(config, table)
        with status("building the network"):
            trainer = Trainer(config, table, device)
        if state is None:  # the folder is created as late as possible, so that a mistake leaves none
            weights = "" if config.init is None else _start_from_weights(trainer)
            lines = start_lines(trainer, folder, weights)
            collectives.on_rank_zero(lambda: stack.enter_context(claimed(folder)))
            collectives.on_rank_zero(lambda: note_start(folder, config, job.typed))
        else:
            check_same_data(data, state, str(job.resume), job.config.resume_data_changed)
            trainer.restore(state)
            before = state["config_before"]
            state = {key: value for key, value in state.items() if key not in SHARDED}  # which unmaps the file
            lines = start_lines(trainer, folder)
            collectives.on_rank_zero(lambda: move_later_checkpoints(folder, trainer.step))
            collectives.on_rank_zero(lambda: move_later_snapshots(folder, trainer.step))
            collectives.on_rank_zero(lambda: _note_resume(job, trainer, folder, before))
        if collectives.is_rank_zero():
            stack.enter_context(log_into(RunFolder(folder).log))
            log_start(trainer, lines)
            if state is not None:
                log_format(state["written_format"])
                log_resume(trainer, state, folder)
        return _run_loop(job, trainer, folder, data, state)


def _with_sigma_data(config: TrainConfig, table: Batches) -> TrainConfig:
    """Return the config with the standard deviation of the data as a number wherever it is used."""
    weighting, loss = config.weighting, config.loss
    by_edm = isinstance(weighting, EdmWeighting) or (isinstance(loss, Ect) and loss.weight == "edm")
    if config.sigma_data == "auto" and (by_edm or config.prediction == "edm"):
        config = replace(config, sigma_data=_std(table))
    if isinstance(weighting, EdmWeighting) and weighting.sigma_data is None:
        config = replace(config, weighting=replace(weighting, sigma_data=float(config.sigma_data)))
    return config


def _std(table: Batches) -> float:
    std = table.std()
    if std < LEAST_SIGMA_DATA:
        raise UserError(
            "sigma_data=auto: the values of the data hardly differ; set a number, for example sigma_data=0.5"
        )
    return std


def _note_resume(job: TrainingJob, trainer: Trainer, folder: Path, before: TrainConfig) -> None:
    """Note what a resumed run changes: of one that has no steps left, only where its data are."""
    if trainer.step < trainer.steps:
        note_resume(folder, trainer.config, trainer.step, job.changes)
        return
    paths = [text for text in job.changes if key_of(text) in PATH_KEYS]
    note_resume(folder, replace(before, dataset=trainer.config.dataset), trainer.step, paths)


def _start_from_weights(trainer: Trainer) -> str:
    """Copy the weights that the config names to the network, and return which in words. Rank 0 reads them."""
    found: list[dict[str, Tensor]] = []

    def read() -> str:
        weights, said = weights_to_start_from(trainer.config, trainer.classes)
        found.append(weights)
        return said

    said = collectives.on_rank_zero(read)
    trainer.start_from(found[0] if found else None)
    return said


def _state_of_rank_zero(job: TrainingJob) -> dict[str, Any]:
    """Return the contents of the checkpoint to resume from; on other ranks than 0 without weights and moments."""
    whole: list[dict[str, Any]] = []

    def small() -> dict[str, Any]:
        whole.append(load_for_resume(job.config, str(job.resume), job.changes))
        return {key: value for key, value in whole[0].items() if key not in SHARDED}

    return {**collectives.on_rank_zero(small), **(whole[0] if whole else {})}


def _agree_on_job(job: TrainingJob) -> TrainingJob:
    """Return the job of rank 0, or that of a rank whose processes have been restarted."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    restarts, job = max(collectives.all_gather_object((restarts, job)), key=lambda pair: pair[0])
    return collectives.on_rank_zero(lambda: _job_after_restart(job)) if restarts > 0 else job


def _job_after_restart(job: TrainingJob) -> TrainingJob:
    """Return the job to run after workers were restarted: it resumes from the newest checkpoint, if there is one."""
    if job.resume is not None:
        return replace(job, resume=str(folder_to_resume(job.resume)))
    started = RunFolder(job.folder).last_checkpoint.is_file()
    return replace(job, resume=str(job.folder), changes=()) if started else job


def _load_data(
    config: TrainConfig, device: torch.device, resume: str, state: dict[str, Any] | None
) -> tuple[Batches, str]:
    """Return the training data and their fingerprint. Raise `UserError` if the config does not fit them.

    state: of the run to resume, whose classes number the labels; None for a new run.
    """
    check_loggers(config)
    _check_batch_size(config, collectives.world_size())
    if state is not None:  # before, the config of the run was not known
        collectives.on_rank_zero(lambda: _check_metrics(config))
    with status("reading the dataset"):
        examples = collectives.local_rank_zero_first(lambda: open_examples(config.dataset, train=True))
    conditional = isinstance(config.conditioning, ClassLabels)
    if conditional:
        check_labels(config.dataset, examples)
        if state is None:
            check_trained(config.dataset, examples)
        else:
            examples = numbered_by(state["classes"], examples, f"resume={resume}: the train split", "the network knows")
    collectives.on_rank_zero(lambda: check_metrics(config, examples.classes if conditional else []))
    images = config.dataset if isinstance(config.dataset, ImageDataset) else None
    flip, augment = (images.flip, images.augment) if images else (False, 0.0)
    return batches_of(examples, flip, config.train.seed, device, augment), fingerprint(examples)


def _run_loop(
    job: TrainingJob, trainer: Trainer, folder: Path, data: str, state: dict[str, Any] | None
) -> float | None:
    """Train to the end in `folder`, which this process holds; return what `train` returns."""
    try:
        with Signals() as signals, logging_redirect_tqdm():
            logging.getLogger().handlers[-1].setLevel(logging.INFO)  # which the redirection does not copy
            with closing(Loop(trainer, folder, data, signals, state, job.on_milestone)) as loop:
                loss = loop.run()
            if not collectives.is_rank_zero():
                return None
            log.info("Training finished: %s", folder)
            log.info("Next: ddpm-sample %s", override("ckpt", folder))
            train = trainer.config.train
            with collectives.alone():
                return loss if train.report is None else final_metric(train, folder, str(trainer.device))
    except Failure as error:
        raise Failure(f"{error}; {resume_hint(folder)}") from error
    except KeyboardInterrupt as error:
        raise Stopped(signal.SIGINT, f"stopped at once; {resume_hint(folder)}") from error


def _check_batch_size(config: TrainConfig, processes: int) -> None:
    """Raise `UserError` unless the batch can be divided equally among the processes and accumulation parts."""
    train, parts = config.train, processes * config.train.accumulate
    ok = train.batch_size % parts == 0
    machines = " times distributed.nnodes" if config.distributed.nnodes > 1 else ""
    wanted = f"divisible by {parts}, which is devices{machines} times train.accumulate"
    check(ok, "train.batch_size", train.batch_size, wanted)


def _check_metrics(config: TrainConfig) -> None:
    """Raise `UserError` if the metric of train.report or evaluate.metric could not be computed."""
    _check_metric(config, "train.report", config.train.report)
    if config.evaluate.every is not None:
        _check_metric(config, "evaluate.metric", config.evaluate.metric)


def _check_metric(config: TrainConfig, key: str, metric: str | None) -> None:
    if metric not in MEASURED:
        return
    if not isinstance(config.dataset, ImageDataset):
        raise UserError(f"{key}={metric}: compares images, and dataset={config.dataset.name} has points; leave it out")
    check_start(Process(path_of(config.schedule)), config.sampler)  # again, for resumed runs of older versions
    if find_spec("torch_fidelity") is None:
        raise UserError(f"{key}={metric}: needs torch-fidelity; pip install 'ddpm-cli[eval]'")
    if metric == "fid":
        from ddpm_cli.evaluation.fidelity import extractors  # needs torch-fidelity, which is optional

        extractors(["fid"], None, resolve_device("cpu"))  # downloaded now rather than at the end of the run
