"""ddpm-train: a run from a config, or the rest of one from its last checkpoint."""

import logging
import shlex
import signal
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from importlib.util import find_spec
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ddpm_cli.cli.command import launch, log_into
from ddpm_cli.cli.folders import NOTES, claimed, reopened
from ddpm_cli.cli.sweep import jobs_of, typed_overrides
from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import Failure, Stopped, UserError, one_of
from ddpm_cli.files import write
from ddpm_cli.options import ClassLabels, ImageDataset, ImageFolder

if TYPE_CHECKING:
    from ddpm_cli.training.loop import Loop
    from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)

USAGE = """
ddpm-train learns to make images like those of a dataset, by denoising diffusion.

  ddpm-train                                        Fashion-MNIST, a small U-Net, the best device there is
  ddpm-train experiment=quickstart                  pictures of clothes in minutes on a CPU
  ddpm-train dataset=image_folder dataset.root=/pictures dataset.image_size=32
  ddpm-train -m schedule=linear,cosine loss=l1,l2   a run for each combination
  ddpm-train -m … sweep.resume=outputs/sweep/…      what is missing of a sweep that was stopped
  ddpm-train resume=outputs/train/…                 go on with a run that was stopped
"""

MAY_CHANGE = ("train.", "checkpoint.", "device", "compile", "dataset.root", "logger")
"""Keys that may be given beside resume=; all others are the run's own."""


def main() -> None:
    """The console script."""
    launch("train", USAGE, TrainConfig, check, run)


def check(config: TrainConfig) -> None:
    """Raise `UserError` for what can be known before any data is read, and needs torch to be known."""
    from ddpm_cli.diffusion.schedules import betas_of
    from ddpm_cli.training.devices import resolve_device
    from ddpm_cli.training.loggers import check_loggers

    resolve_device(config.device)
    betas_of(config.schedule)
    check_loggers(config)
    _check_report(config)
    if config.resume is not None:
        _checkpoint_to_resume(config.resume)
    elif isinstance(config.dataset, ImageFolder):
        config.dataset.check_root()


def run(config: TrainConfig, folder: Path) -> float | None:
    """Train as `config` says into `folder`, or go on with a run in its own; returns what train.report asks for."""
    if config.sweep.resume is not None:
        return _again(config, folder)
    if config.resume is not None:
        return _go_on(config, config.resume, HydraConfig.get().overrides.task)
    return _start(config, folder)


def _start(config: TrainConfig, folder: Path) -> float:
    loop = _loop(config, folder)
    noted = asdict(config)
    if noted["dataset"].get("root") is not None:
        noted["dataset"]["root"] = str(Path(noted["dataset"]["root"]).expanduser().absolute())
    with claimed(folder):
        write(folder / NOTES / "overrides.yaml", OmegaConf.to_yaml(typed_overrides()).encode())
        write(folder / NOTES / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(noted)).encode())
        return _train(loop)


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
    if (folder / "checkpoints" / "last.pt").is_file():
        return _go_on(config, str(folder), [])
    return _start(config, folder)


def _go_on(config: TrainConfig, resume: str, overrides: Sequence[str]) -> float:
    """The rest of a run, with those of its values changed that `overrides` change."""
    from ddpm_cli.training.checkpoint import load_checkpoint
    from ddpm_cli.training.resume import check_resumable
    from ddpm_cli.training.run_checkpoints import newest_sound, set_aside
    from ddpm_cli.training.stored_config import with_noted_root

    path = _checkpoint_to_resume(resume)
    folder = path.parent.parent
    with reopened("resume", folder):
        if Path(resume).expanduser().is_dir():
            path, state = newest_sound("resume", folder)
        else:
            state = load_checkpoint("resume", path)
        check_resumable("resume", path, state)
        loop = _loop(_resumed_config(config, with_noted_root(state["config"], path), overrides), folder)
        _check_data(loop, state, config)
        loop.restore(state)
        set_aside(folder, loop.trainer.step)
        return _train(loop)


def _loop(config: TrainConfig, folder: Path) -> "Loop":
    """The device, the data and the network of a run that will write to `folder`."""
    from ddpm_cli.data.fingerprint import fingerprint
    from ddpm_cli.data.sources import check_labels, load_examples
    from ddpm_cli.data.table import Table
    from ddpm_cli.training.devices import resolve_device
    from ddpm_cli.training.loggers import check_loggers
    from ddpm_cli.training.loop import Loop
    from ddpm_cli.training.trainer import Trainer

    check_loggers(config)
    device = resolve_device(config.device)
    examples = load_examples(config.dataset, train=True)
    if isinstance(config.conditioning, ClassLabels):
        check_labels(config.dataset, examples)
    if config.train.report == "fd_classifier" and examples.labels is None:
        raise UserError("train.report=fd_classifier: these data have no labels to train a classifier on; use val_loss")
    flip = isinstance(config.dataset, ImageDataset) and config.dataset.flip
    trainer = Trainer(config, Table(examples, flip, config.train.seed, device), device)
    return Loop(trainer, folder, fingerprint(examples))


def _train(loop: "Loop") -> float:
    """Run `loop` in its folder, which is this process's own now."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ddpm_cli.evaluation.report import reported
    from ddpm_cli.training.signals import Signals

    with log_into(loop.folder / "train.log"), Signals() as signals:
        _describe(loop.trainer, loop.folder)
        try:
            with logging_redirect_tqdm():
                logging.getLogger().handlers[-1].setLevel(logging.INFO)  # the level that the redirection forgets
                loss = loop.run(signals)
        except Failure as error:
            raise Failure(f"{error}; {_how_to_go_on(loop.folder)}") from error
        except KeyboardInterrupt as error:
            raise Stopped(signal.SIGINT, f"stopped at once; {_how_to_go_on(loop.folder)}") from error
        log.info("done; ddpm-sample ckpt=%s makes more images", loop.folder)
        train = loop.trainer.config.train
        return loss if train.report is None else reported(train, loop.folder, str(loop.trainer.device))


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
        from ddpm_cli.evaluation.fidelity import extractors
        from ddpm_cli.training.devices import resolve_device

        extractors(["fid"], None, resolve_device("cpu"))  # fetched now, rather than missed at the end


def _how_to_go_on(folder: Path) -> str:
    if (folder / "checkpoints" / "last.pt").exists():
        return f"ddpm-train resume={folder} goes on from its last checkpoint"
    return "nothing was trained yet, so the same command starts again"


def _checkpoint_to_resume(resume: str) -> Path:
    """The checkpoint in a run folder that `resume` names."""
    from ddpm_cli.training.run_checkpoints import find_checkpoint

    path = find_checkpoint("resume", resume)
    if path.suffix == ".safetensors":
        raise UserError(f"resume={resume}: {path.name} holds weights and no optimizer; name the run that it came from")
    if path.parent.name != "checkpoints":
        raise UserError(f"resume={resume}: must be a run folder, or a checkpoint in the checkpoints/ of one")
    return path


def _resumed_config(typed: TrainConfig, own: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """The run's own config, with what the `overrides` beside `resume=` say where that may change."""
    from ddpm_cli.training.stored_config import train_config

    merged, now = asdict(own), asdict(typed)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key in ("resume", "resume_data_changed"):
            continue
        if not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{override}: not with resume=, which goes on with the run's own config; "
                "only device, compile, logger, dataset.root, checkpoint.* and train.* may change"
            )
        *groups, last = key.split(".")
        ours = reduce(getitem, groups, merged)
        if last not in ours:
            raise UserError(f"{override}: this run has no {key}; leave it out")
        ours[last] = reduce(getitem, groups, now)[last]
    return train_config(merged)


def _check_data(loop: "Loop", state: dict[str, Any], typed: TrainConfig) -> None:
    """Raise `UserError` where the data are others than those in `state`, and may not be."""
    if loop.trainer.classes != state["classes"]:
        raise UserError(
            f"resume={typed.resume}: its classes are {one_of(state['classes'])}, those of the data now "
            f"{one_of(loop.trainer.classes)}; give it the data that it was trained on"
        )
    if loop.fingerprint != state["data"] and not typed.resume_data_changed:
        raise UserError(
            f"resume={typed.resume}: the data are not those that it was trained on so far; give it those, "
            "or go on with these by resume_data_changed=true"
        )


def _describe(trainer: "Trainer", folder: Path) -> None:
    """A short table at the start: what is trained on what, where it goes."""
    from ddpm_cli.training.generate import warn_of_few_steps
    from ddpm_cli.training.start_table import start_table

    for name, text in {**start_table(trainer), "folder": str(folder)}.items():
        log.info("%-10s%s", name, text)
    config = trainer.config
    warn_of_few_steps(config.sampler, config.variance, config.schedule.timesteps)
