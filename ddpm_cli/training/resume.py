"""Resume a run, or start one from the weights of another: its checkpoint, and its config merged with what was typed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.checkpoints.format import check_matches, load_checkpoint, read_config
from ddpm_cli.checkpoints.loading import check_classes, load_weights, weights_like
from ddpm_cli.checkpoints.migrations import FORMAT
from ddpm_cli.checkpoints.notes import key_of
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint, newest_config, newest_valid_checkpoint
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.checkpoints.stored_config import PATHS, train_config, with_noted_paths
from ddpm_cli.config import TrainConfig
from ddpm_cli.config.train import MilestoneEvaluation
from ddpm_cli.errors import UserError, first_of
from ddpm_cli.sampling.build import build_timestep_sampler, network_of
from ddpm_cli.shell import override
from ddpm_cli.tracking.timeline import stored_timeline
from ddpm_cli.training.loss_monitor import LossMonitor
from ddpm_cli.training.optimizer import learning_rate, moments_like
from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)

FROM_INIT = ("model", "schedule", "prediction", "sigma_data", "variance", "conditioning", "loss", "weighting")
"""Keys and groups that a run takes from the one that init= names, unless they are typed."""
PATH_KEYS = tuple(f"dataset.{key}" for key in PATHS)
RECOMPUTE = "model.gradient_checkpointing"
MAY_CHANGE = (
    "train.",
    "evaluate.",
    "checkpoint.",
    "device",
    "threads",
    "distributed.",
    "compile",
    "logger",
    RECOMPUTE,
    *PATH_KEYS,
)
"""Keys that may be changed with resume=; all others keep the values of the run."""


def checkpoint_to_resume(resume: str) -> Path:
    """Return the path of the checkpoint that `resume` names, which must be in a run folder. Raise `UserError`."""
    path = find_checkpoint("resume", resume)
    if path.suffix == ".safetensors":
        raise UserError(f"resume={resume}: {path.name} has weights but no optimizer; name the run that it came from")
    if path.parent.name != "checkpoints":
        raise UserError(f"resume={resume}: must be a run folder, or a checkpoint in the checkpoints/ of one")
    return path


def folder_to_resume(resume: str) -> Path:
    """Return the run folder that `resume` names, or that contains the checkpoint that it names. Raise `UserError`."""
    return checkpoint_to_resume(resume).parent.parent


def load_for_resume(typed: TrainConfig, resume: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """Return the contents of the checkpoint that `resume` names, with the config to continue with.

    For a run folder it is the newest valid checkpoint. `config_before` is the config of the run before the changes.
    Raise `UserError` if training cannot continue from it.
    """
    path = checkpoint_to_resume(resume)
    if Path(resume).expanduser().is_dir():
        path, state = newest_valid_checkpoint("resume", folder_to_resume(resume))
    else:
        state = load_checkpoint("resume", path)
    check_resumable("resume", path, state)
    config = _merged_config(typed, with_noted_paths(state["config"], path), changes)
    return state | {"config": config, "config_before": state["config"]}


def config_to_resume(typed: TrainConfig, resume: str, changes: tuple[str, ...]) -> TrainConfig:
    """Return the config to continue with, as `load_for_resume` does, without reading and checking any tensors."""
    path = checkpoint_to_resume(resume)
    if Path(resume).expanduser().is_dir():
        path, config = newest_config("resume", folder_to_resume(resume))
    else:
        config = read_config("resume", path)
    return _merged_config(typed, with_noted_paths(config, path), changes)


def check_resumable(key: str, path: Path, state: dict[str, Any]) -> None:
    """Raise `UserError` unless training can continue from `state`, which `load_checkpoint` read from `path`."""
    config = state["config"]
    check_classes(key, path, config, state["classes"])
    with torch.device("meta"):
        network = network_of(config, state["classes"])
    weights = dict(network.state_dict())
    timesteps = build_timestep_sampler(config, "meta")
    like = {
        "model": weights,
        "ema": weights,
        "averages": {i: dict(network.named_parameters()) for i in range(len(config.train.ema_lengths or []))},
        "optimizer": moments_like(config.train, network) if state["step"] > 0 else {},
        "scaler": {"scale": 1.0, "_growth_tracker": 0} if state["scaler"] else {},
        "timestep_sampler": timesteps.state(),
        "losses": LossMonitor(1).state(),
    }
    check_matches(key, path, state, like, state["stored_bytes"])


def check_same_data(fingerprint: str, state: dict[str, Any], resume: str, may_change: bool) -> None:
    """Raise `UserError` if the data differ from those of the checkpoint and that is not allowed."""
    if fingerprint != state["data"] and not may_change:
        raise UserError(
            f"resume={resume}: the data are not those that it was trained on; use the same data, or continue with "
            "these by resume_data_changed=true"
        )


def resume_hint(folder: Path) -> str:
    """Return what to type after a run ended early."""
    if RunFolder(folder).last_checkpoint.exists():
        return f"ddpm-train {override('resume', folder)} continues from its last checkpoint"
    return "nothing was trained yet, so the same command starts again"


def _merged_config(typed: TrainConfig, own: TrainConfig, changes: tuple[str, ...]) -> TrainConfig:
    """Return the config of the run with the overrides typed beside `resume=`. Raise `UserError` for fixed keys."""
    merged, now = asdict(own), asdict(typed)
    for change in changes:
        key = key_of(change)
        if key in ("resume", "resume_data_changed"):
            continue
        if key in ("init", "init_weights"):
            raise UserError(f"{change}: starts a new run, and resume= continues one; leave one of them out")
        if not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{change}: not with resume=, which keeps the config of the run; only device, devices, threads, "
                f"distributed.*, compile, logger, dataset.root, {RECOMPUTE}, checkpoint.*, evaluate.* and train.* may "
                "change"
            )
        _set_typed(key, merged, now)
    resumed = train_config(merged)
    before, after = own.train.optimizer, resumed.train.optimizer
    if "muon" in (before, after) and before != after:
        raise UserError(
            f"train.optimizer={after}: this run has the momenta of {before}, which are different; leave it out"
        )
    _check_comparable(own.evaluate, resumed.evaluate)
    if resumed.train.ema_lengths not in (None, own.train.ema_lengths):
        raise UserError(
            f"train.ema_lengths={resumed.train.ema_lengths}: averages start with a run, and this one has "
            f"{own.train.ema_lengths or 'none'}; leave it out, or start a new run with init="
        )
    return resumed


def _check_comparable(before: MilestoneEvaluation, now: MilestoneEvaluation) -> None:
    """Raise `UserError` if later measurements of a run could not be compared with those that it has."""
    if before.every is not None and before.metric == now.metric and before.n != now.n:  # the bias depends on n
        raise UserError(
            f"evaluate.n={now.n}: this run has measurements of {before.n} samples, which other ones cannot be compared "
            "with; leave it out"
        )


def _set_typed(key: str, config: dict[str, Any], typed: dict[str, Any]) -> None:
    """Set a key of a config to its value in the typed config. Raise `UserError` if the config does not have it."""
    *groups, last = key.split(".")
    ours = reduce(getitem, groups, config)
    if last not in ours:
        raise UserError(f"{key}: this run has no such key; leave it out")
    ours[last] = reduce(getitem, groups, typed)[last]


def config_with_init(typed: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """Return the config of a new run that starts from the weights that `typed.init` names.

    Its network and diffusion process are those of that run, except for what `overrides` or an experiment among them
    choose. Raise `UserError`.
    """
    keys = [key_of(change) for change in overrides]
    if "experiment" in keys:
        return typed
    path = find_checkpoint("init", str(typed.init))
    whole = path.suffix == ".safetensors"
    merged, now = asdict(typed), asdict(typed)
    theirs = asdict(_initial_weights(typed).config if whole else read_config("init", path))
    for group in FROM_INIT:
        if group not in keys:
            merged[group] = theirs[group]
            for key in keys:
                if key.startswith(f"{group}."):
                    _set_typed(key, merged, now)
    return train_config(merged)


def weights_to_start_from(config: TrainConfig, classes: list[str]) -> tuple[dict[str, Tensor], str]:
    """Return those tensors of `config.init` that fit the network, and which of its tensors start anew, in words.

    Raise `UserError` if none fits.
    """
    given = _initial_weights(config)
    wanted = weights_like(config, classes)
    fitting = {name: x for name, x in given.tensors.items() if name in wanted and x.shape == wanted[name].shape}
    if given.classes != classes:  # whose numbers mean other classes
        one_more = weights_like(config, [*classes, ""])
        fitting = {name: x for name, x in fitting.items() if one_more[name].shape == x.shape}
    if not fitting:
        raise UserError(f"init={config.init}: no tensor fits model={config.model.name}; use the model of that run")
    anew = [name for name in wanted if name not in fitting]
    said = f"{given.kind} of step {given.step} of {config.init}: {len(fitting)} of {len(wanted)} tensors"
    if anew:
        said += f"\nnew: {first_of(anew)}"
    return fitting, said


def _initial_weights(config: TrainConfig) -> Weights:
    return load_weights("init", find_checkpoint("init", str(config.init)), config.init_weights)


def log_format(written: int) -> None:
    """Log that the next checkpoint of a resumed run has a newer format than the last one."""
    if written < FORMAT:
        log.info(
            "This checkpoint has format %d. The next ones have format %d, which an older ddpm-cli cannot read.",
            written,
            FORMAT,
        )


def log_resume(trainer: Trainer, state: Mapping[str, Any], folder: Path) -> None:
    """Log that a run resumed from `state` has no steps left, or that its learning rate jumps up."""
    now, examples = trainer.config.train, len(trainer.table)
    if trainer.step >= trainer.steps:
        length = f"train.steps={2 * trainer.step}" if now.epochs is None else f"train.epochs={2 * now.epochs:g}"
        log.info("Finished already. To train longer:")
        log.info("  ddpm-train %s %s", override("resume", folder), length)
        return
    before = stored_timeline(state["config_before"].train, examples, state["phases"])
    old = learning_rate(trainer.step, before.train, before.steps)
    new = learning_rate(trainer.step, now, trainer.steps)
    if new > 1.01 * old:
        log.info(
            "The learning rate goes up from %.3g to %.3g: its schedule now ends at step %d.", old, new, trainer.steps
        )
