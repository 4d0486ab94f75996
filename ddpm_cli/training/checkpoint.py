"""Checkpoints: one file that holds all a run needs to go on and all a sampler needs; data, never code."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_cli.config import train_config
from ddpm_cli.errors import UserError
from ddpm_cli.files import atomic

FORMAT = 2
KEYS = {
    "format",
    "step",
    "seconds",
    "config",
    "model",
    "ema",
    "optimizer",
    "scaler",
    "classes",
    "timestep_sampler",
}


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write checkpoints/step_XXXXXXXX.pt in a run folder, whole or not at all, and make last.pt the same."""
    path = folder / "checkpoints" / f"step_{state['step']:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as partial:
        torch.save({"format": FORMAT, **state}, partial)
    with atomic(path.with_name("last.pt")) as partial:
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, partial)
    return path


def find_checkpoint(key: str, value: str) -> Path:
    """The checkpoint that `value` names: a file, or a run folder's last. `key` is for the message."""
    path = Path(value).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise UserError(f"{key}={value}: cannot be read ({error.strerror}); name another") from error
    if is_folder:
        last = path / "checkpoints" / "last.pt"
        if last.is_file():
            return last
        raise UserError(f"{key}={value}: no checkpoint in this folder; a run writes checkpoints/last.pt")
    if not is_file:
        raise UserError(f"{key}={value}: no such file or folder; name a run folder or a checkpoint in one")
    return path


def load_checkpoint(key: str, path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU, its `config` as a `TrainConfig`. Raises `UserError`.

    Runs no code of the file's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on a file that is not its own
        raise UserError(f"{key}={path}: not a checkpoint, or a damaged one; name another") from error
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise UserError(f"{key}={path}: not a checkpoint of ddpm-train; name one from a run's checkpoints/")
    if state["format"] != FORMAT:
        raise UserError(
            f"{key}={path}: format {state['format']}, but this version reads format {FORMAT}; "
            "use the version of ddpm-cli that wrote it"
        )
    if missing := KEYS - state.keys():
        raise UserError(f"{key}={path}: not a whole checkpoint: {', '.join(sorted(missing))} missing")
    if type(state["step"]) is not int or state["step"] < 0 or type(state["seconds"]) is not float:
        raise UserError(f"{key}={path}: not a checkpoint of a run: its step or seconds are no numbers")
    names = state["classes"]
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{key}={path}: not a checkpoint of a run: its classes are no names")
    try:
        return {**state, "config": train_config(state["config"])}
    except UserError as error:
        raise UserError(f"{key}={path}: cannot be used: {error}") from error


def load_weights(key: str, path: Path, network: nn.Module, weights: dict[str, Any]) -> None:
    """Load a checkpoint's `model` or `ema` into the network that its config describes. Raises `UserError`."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{key}={path}: its weights are not those of the network in its config") from error
