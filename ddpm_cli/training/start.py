"""Start or resume a training run, in one process or in each of several."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ddpm_cli.checkpoints.run_folder import NOTES, claimed, log_into, reopened
from ddpm_cli.config import ClassLabels, ImageDataset, TrainConfig
from ddpm_cli.errors import Failure, Stopped, UserError, check, one_of
from ddpm_cli.files import write

if TYPE_CHECKING:
    from ddpm_cli.training.loop import Loop
    from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)

MAY_CHANGE = ("train.", "checkpoint.", "device", "distributed.", "compile", "dataset.root", "logger")
"""Keys that may be changed with resume=; all others keep the values of the run."""


@dataclass(frozen=True)
class TrainingJob:
    """What each process of a run needs to know.

    Attributes:
        config: the config as typed.
        folder: the folder of a new run.
        typed: the overrides, to be written to the run folder.
        resume: the run or checkpoint to resume, if any.
        changes: the overrides that change the config of the resumed run.
    """

    config: TrainConfig
    folder: Path
    typed: list[str]
    resume: str | None = None
    changes: tuple[str, ...] = ()


def train(job: TrainingJob) -> float | None:
    """Start or resume a run. Return what train.report asks for or the last loss; None on ranks other than 0."""
    from ddpm_cli.distributed import collectives

    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    # All ranks use the job of rank 0, or that of a rank which has already been restarted.
    restarts, job = max(collectives.all_gather_object((restarts, job)), key=lambda pair: pair[0])
    if restarts > 0:
        job = collectives.on_rank_zero(lambda: _job_after_restart(job))
    return _start_run(job) if job.resume is None else _resume_run(job, job.resume)


def _job_after_restart(job: TrainingJob) -> TrainingJob:
    """Return the job to run after workers were restarted: it resumes from the newest checkpoint, if there is one."""
    if job.resume is not None:
        return replace(job, resume=str(checkpoint_to_resume(job.resume).parent.parent))
    begun = (job.folder / "checkpoints" / "last.pt").is_file()
    return replace(job, resume=str(job.folder), changes=()) if begun else job


def load_for_resume(config: TrainConfig, resume: str, changes: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """Return the path of the checkpoint that `resume` names, and its contents with the config to continue with."""
    from ddpm_cli.checkpoints.format import load_checkpoint
    from ddpm_cli.checkpoints.run_checkpoints import newest_valid_checkpoint
    from ddpm_cli.checkpoints.stored_config import with_noted_root
    from ddpm_cli.training.resume import check_resumable

    path = checkpoint_to_resume(resume)
    if Path(resume).expanduser().is_dir():
        path, state = newest_valid_checkpoint("resume", path.parent.parent)
    else:
        state = load_checkpoint("resume", path)
    check_resumable("resume", path, state)
    return path, state | {"config": _resumed_config(config, with_noted_root(state["config"], path), changes)}


def checkpoint_to_resume(resume: str) -> Path:
    """Return the path of the checkpoint that `resume` names, which must be in a run folder."""
    from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint

    path = find_checkpoint("resume", resume)
    if path.suffix == ".safetensors":
        raise UserError(f"resume={resume}: {path.name} holds weights and no optimizer; name the run that it came from")
    if path.parent.name != "checkpoints":
        raise UserError(f"resume={resume}: must be a run folder, or a checkpoint in the checkpoints/ of one")
    return path


def resume_hint(folder: Path) -> str:
    """Return what to type after a run was ended early."""
    if (folder / "checkpoints" / "last.pt").exists():
        return f"ddpm-train resume={folder} goes on from its last checkpoint"
    return "nothing was trained yet, so the same command starts again"


@contextmanager
def _held(folder: AbstractContextManager[None]) -> Iterator[None]:
    """Within the context, rank 0 holds a folder."""
    from ddpm_cli.distributed import collectives

    with ExitStack() as stack:
        collectives.on_rank_zero(lambda: stack.enter_context(folder))
        yield


def _start_run(job: TrainingJob) -> float | None:
    from ddpm_cli.distributed import collectives

    loop = _loop(job.config, job.folder)
    noted = asdict(job.config)
    if noted["dataset"].get("root") is not None:
        noted["dataset"]["root"] = str(Path(noted["dataset"]["root"]).expanduser().absolute())
    with _held(claimed(job.folder)):
        collectives.on_rank_zero(lambda: _note({"overrides": job.typed, "config": noted}, job.folder / NOTES))
        return _train(loop)


def _note(notes: dict[str, Any], folder: Path) -> None:
    for name, content in notes.items():
        write(folder / f"{name}.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def _resume_run(job: TrainingJob, resume: str) -> float | None:
    """Resume a run and train to its end."""
    from ddpm_cli.checkpoints.run_checkpoints import move_later_checkpoints
    from ddpm_cli.distributed import collectives

    folder = collectives.on_rank_zero(lambda: checkpoint_to_resume(resume).parent.parent)
    with _held(reopened("resume", folder)):
        _, state = collectives.on_rank_zero(lambda: load_for_resume(job.config, resume, job.changes))
        loop = _loop(state["config"], folder)
        _check_data(loop, state, resume, job.config.resume_data_changed)
        loop.restore(state)
        collectives.on_rank_zero(lambda: move_later_checkpoints(folder, loop.trainer.step))
        return _train(loop)


def _loop(config: TrainConfig, folder: Path) -> "Loop":
    """Return the training loop of a run that writes to `folder`, with its data, device and network."""
    from ddpm_cli.data.sources import check_labels, load_examples
    from ddpm_cli.data.table import Table, fingerprint
    from ddpm_cli.distributed import collectives
    from ddpm_cli.distributed.devices import resolve_device
    from ddpm_cli.tracking.loggers import check_loggers
    from ddpm_cli.training.loop import Loop
    from ddpm_cli.training.trainer import Trainer

    check_loggers(config)
    check_parts(config, collectives.world_size())
    device = resolve_device(config.device)
    examples = collectives.local_rank_zero_first(lambda: load_examples(config.dataset, train=True))
    if isinstance(config.conditioning, ClassLabels):
        check_labels(config.dataset, examples)
    if config.train.report == "fd_classifier" and examples.labels is None:
        raise UserError("train.report=fd_classifier: these data have no labels to train a classifier on; use val_loss")
    flip = isinstance(config.dataset, ImageDataset) and config.dataset.flip
    trainer = Trainer(config, Table(examples, flip, config.train.seed, device), device)
    return Loop(trainer, folder, fingerprint(examples))


def check_parts(config: TrainConfig, processes: int) -> None:
    """Raise `UserError` unless the batch can be divided equally among the processes and accumulation parts."""
    train, parts = config.train, processes * config.train.accumulate
    ok = train.batch_size % parts == 0
    check(ok, "train.batch_size", train.batch_size, f"divisible by {parts}, the processes times train.accumulate")


def _train(loop: "Loop") -> float | None:
    """Run `loop` in its folder, which this process holds."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ddpm_cli.distributed import collectives
    from ddpm_cli.evaluation.final_metric import final_metric
    from ddpm_cli.training.signals import Signals

    with ExitStack() as stack:
        if collectives.is_rank_zero():
            stack.enter_context(log_into(loop.folder / "train.log"))
            _describe(loop.trainer, loop.folder)
        signals = stack.enter_context(Signals())
        try:
            with logging_redirect_tqdm():
                logging.getLogger().handlers[-1].setLevel(logging.INFO)  # which the redirection does not copy
                loss = loop.run(signals)
        except Failure as error:
            raise Failure(f"{error}; {resume_hint(loop.folder)}") from error
        except KeyboardInterrupt as error:
            raise Stopped(signal.SIGINT, f"stopped at once; {resume_hint(loop.folder)}") from error
        if not collectives.is_rank_zero():
            return None
        log.info("done; ddpm-sample ckpt=%s makes more images", loop.folder)
        train = loop.trainer.config.train
        return loss if train.report is None else final_metric(train, loop.folder, str(loop.trainer.device))


def _resumed_config(typed: TrainConfig, own: TrainConfig, changes: tuple[str, ...]) -> TrainConfig:
    """Return the config of the run with the overrides typed beside `resume=`. Raise `UserError` for fixed keys."""
    from ddpm_cli.checkpoints.stored_config import train_config

    merged, now = asdict(own), asdict(typed)
    for override in changes:
        key = override.split("=")[0].lstrip("+~")
        if key in ("resume", "resume_data_changed"):
            continue
        if not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{override}: not with resume=, which goes on with the run's own config; only device, devices, "
                "distributed.*, compile, logger, dataset.root, checkpoint.* and train.* may change"
            )
        *groups, last = key.split(".")
        ours = reduce(getitem, groups, merged)
        if last not in ours:
            raise UserError(f"{override}: this run has no {key}; leave it out")
        ours[last] = reduce(getitem, groups, now)[last]
    resumed = train_config(merged)
    before, after = own.train.optimizer, resumed.train.optimizer
    if "muon" in (before, after) and before != after:
        raise UserError(
            f"train.optimizer={after}: this run has the momenta of {before}, which are others; leave it out"
        )
    return resumed


def _check_data(loop: "Loop", state: dict[str, Any], resume: str, may_change: bool) -> None:
    """Raise `UserError` if the data differ from those of the checkpoint and that is not allowed."""
    if loop.trainer.classes != state["classes"]:
        raise UserError(
            f"resume={resume}: its classes are {one_of(state['classes'])}, those of the data now "
            f"{one_of(loop.trainer.classes)}; give it the data that it was trained on"
        )
    if loop.fingerprint != state["data"] and not may_change:
        raise UserError(
            f"resume={resume}: the data are not those that it was trained on so far; give it those, "
            "or go on with these by resume_data_changed=true"
        )


def _describe(trainer: "Trainer", folder: Path) -> None:
    """Log the table at the start of a run."""
    from ddpm_cli.sampling.sample_generator import warn_of_few_steps
    from ddpm_cli.training.summary_table import start_table

    for name, text in {**start_table(trainer), "folder": str(folder)}.items():
        log.info("%-10s%s", name, text)
    config = trainer.config
    warn_of_few_steps(config.sampler, config.variance, config.schedule.timesteps)
