"""The checkpoint format: a file with all that resuming and sampling need, of data and never of code.

Its large tensors may be in shards, see `sharded`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.checkpoints.checksum import (
    Damaged,
    append_checksum,
    check_archive,
    check_checksum,
    check_mark,
    check_pickle,
)
from ddpm_cli.checkpoints.migrations import FORMAT, OLDEST, migrate
from ddpm_cli.checkpoints.sharded import read_shards, shards_of, valid_shards
from ddpm_cli.checkpoints.stored_config import from_stored, missing_plugin
from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.files import atomic
from ddpm_cli.tracking.timeline import are_phases

TYPES = {
    "step": int,  # done
    "phases": list,  # batch sizes and sizes of the dataset so far, see tracking/timeline.py
    "seconds": float,  # spent in steps
    "config": dict,  # as a plain dict, see stored_config
    "plugins": dict,  # names of plugins by the config group whose option they define
    "classes": list,  # names of the classes of a conditional network
    "data": str,  # fingerprint of the examples
    "model": dict,
    "ema": dict,
    "averages": dict,  # those of train.ema_lengths, by number; empty if there are none
    "optimizer": dict,  # the state of each parameter, by number
    "scaler": dict,  # of the gradient scaler in fp16, else empty
    "timestep_sampler": dict,
    "losses": dict,  # see LossMonitor.state
    "shards": dict,  # checksums of the files that have the large tensors, by name; empty if there are none
}
"""The keys of a checkpoint besides `format`, and their types."""
MAX_ITEMS = 1_000_000
MAX_DEPTH = 10
MAX_STEP = 10**15
LONGEST = 300
"""Characters of an error about a stored config, which may contain strings of any length."""


class CorruptCheckpoint(UserError):
    """A checkpoint file that is incomplete or damaged."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, which has the keys of `TYPES`, with a checksum, atomically. Raise `NoRoom`."""
    write_tree(path, state)


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of data and tensors and the format, with a checksum, atomically. Raise `NoRoom`."""
    with atomic(path, _bytes_of(tree)) as partial:
        with partial.open("wb") as stream:
            torch.save({"format": FORMAT, **tree}, stream)
        append_checksum(partial)


def load_checkpoint(key: str, path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint on the CPU, its `config` as a `TrainConfig`.

    They are brought to the current format; `written_format` is that of the file, and `stored_bytes` the size of all
    files. Shards are put together.

    No code from the file is run, no path in it is opened, and memory use is little more than the size of the file.
    The tensors are views of the mapped file: copy those to keep. Raise `CorruptCheckpoint` for an incomplete or
    damaged file, and `UserError` for one that this version of ddpm-train did not write. `key` is named in errors.
    """
    state = _contents(key, path, read_tree(key, path))
    if not state["shards"]:
        return {**state, "stored_bytes": path.stat().st_size}
    folder = shards_of(path, state["step"])
    try:
        tensors = read_shards(folder, state["shards"])
    except Damaged as error:
        raise CorruptCheckpoint(f"{key}={path}: {error}; name another checkpoint") from error
    except OSError as error:
        raise UserError(f"{key}={path}: {folder} cannot be read ({error.strerror}); name another checkpoint") from error
    return {**state, **tensors, "stored_bytes": sum(file.stat().st_size for file in folder.iterdir())}


def read_config(key: str, path: Path) -> TrainConfig:
    """Return the config of a checkpoint whose tensors are not read, as `read_head` does."""
    config: TrainConfig = read_head(key, path)["config"]
    return config


def read_head(key: str, path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint whose tensors are not read.

    The file is checked and refused as by `load_checkpoint`, except that damage to the tensors is not found. It tells
    how to start a process; `load_checkpoint` must still be called before anything of the file is used.
    """
    return _contents(key, path, read_tree(key, path, whole=False))


def read_tree(key: str, path: Path, whole: bool = True) -> dict[str, Any]:
    """Return what `write_tree` wrote, as safely as `load_checkpoint` does: its tensors are views of the mapped file.

    whole: whether to read the whole file and compare its checksum. Raise `CorruptCheckpoint` and `UserError`, which
    name `key`.
    """
    try:
        (check_checksum if whole else check_mark)(path)
        check_archive(path)
    except Damaged as error:
        raise CorruptCheckpoint(f"{key}={path}: {error}; name another checkpoint") from error
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror}); name another checkpoint") from error
    try:
        check_pickle(path)
        # With mmap, torch checks that each tensor is within the file.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        plain = _count(state, MAX_DEPTH) <= MAX_ITEMS
    except Exception as error:  # torch raises many kinds of errors for files of other formats
        raise UserError(f"{key}={path}: not a checkpoint of ddpm-train; name another") from error
    if not plain or not isinstance(state, dict) or type(state.get("format")) is not int:
        raise UserError(f"{key}={path}: not a checkpoint of ddpm-train; name another")
    return state


def _contents(key: str, path: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a checkpoint, of which `read_tree` has read `tree`."""
    written, state = tree["format"], in_current_format(key, path, tree)
    if wrong := _invalid_keys(state):
        raise UserError(f"{key}={path}: not a checkpoint of a run: invalid {', '.join(wrong)}")
    try:
        return {**state, "config": from_stored(state["config"]), "written_format": written}
    except UserError as error:
        raise UserError(f"{key}={path}: cannot be used: {str(error)[:LONGEST]}") from error


def in_current_format(key: str, path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a checkpoint of any format that this version reads in the current one.

    Raise `UserError` for other formats, and for an option of a plugin that is not loaded.
    """
    if not OLDEST <= state["format"] <= FORMAT:
        remedy = "install a newer ddpm-cli" if state["format"] > FORMAT else "use the ddpm-cli that wrote it"
        raise UserError(
            f"{key}={path}: format {state['format']}, but this version reads formats {OLDEST} to {FORMAT}; {remedy}"
        )
    try:
        migrated = migrate(state)
    except ValueError as error:
        raise UserError(f"{key}={path}: not a checkpoint of ddpm-train; name another") from error
    if missing := missing_plugin(migrated.get("config"), migrated.get("plugins")):
        raise UserError(f"{key}={path}: {missing}")
    return migrated


def _invalid_keys(state: Mapping[str, Any]) -> list[str]:
    """Return the keys of a checkpoint that are missing, of a wrong type or out of range."""
    wrong = sorted(name for name, kind in TYPES.items() if type(state.get(name)) is not kind)
    if wrong:
        return wrong
    ok = {
        "step": 0 <= state["step"] <= MAX_STEP,
        "phases": are_phases(state["phases"], state["step"]),
        "seconds": 0 <= state["seconds"] < math.inf,
        "classes": all(isinstance(name, str) for name in state["classes"]),
        "shards": valid_shards(state["shards"]),
    }
    return [name for name in ok if not ok[name]]


def check_matches(key: str, path: Path, state: Mapping[str, Any], like: Mapping[str, Any], size: int) -> None:
    """Raise `UserError` unless the items of `state` have the structure, shapes and dtypes of those of `like`.

    Tensors must also be finite and together no larger than `size`, the number of bytes that was read. Those of `like`
    may be on the meta device.
    """
    for name, wanted in like.items():
        if _bytes_of(state[name]) > size:  # before computing anything with its tensors
            raise UserError(f"{key}={path}: larger inside than the file itself; name another checkpoint")
        if difference := _difference(state[name], wanted, name):
            raise UserError(
                f"{key}={path}: does not fit the network in its config: {difference}; name another checkpoint"
            )


def _difference(value: Any, like: Any, at: str) -> str:
    """Return how `value` differs from `like`, or an empty string; `at` is the name of the value."""
    if isinstance(like, Tensor):
        if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
            return f"{at} is no tensor"
        if value.shape != like.shape or value.dtype != like.dtype:
            ours, theirs = (f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in (value, like))
            return f"{at} is {ours}, not {theirs}"
        return "" if value.isfinite().all() else f"{at} is not finite"
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            return f"{at} has other keys"
        return next(filter(None, (_difference(value[key], like[key], f"{at}.{key}") for key in like)), "")
    if isinstance(like, list):
        alike = isinstance(value, list) and all(type(one) is type(like[0]) for one in value)
        return "" if alike else f"{at} is no list as it should be"
    return "" if type(value) is type(like) else f"{at} is no {type(like).__name__}"


def _count(value: Any, depth: int) -> int:
    """Return the number of items in a tree of data and tensors. Raise `ValueError` for too many or other types."""
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    elif not isinstance(value, list | tuple):
        if not (value is None or isinstance(value, str | int | float | Tensor)):
            raise ValueError(type(value))
        return 1
    total = 1
    for one in value:
        total += _count(one, depth - 1)
        if total > MAX_ITEMS:
            raise ValueError("too many")
    return total


def _bytes_of(value: Any) -> int:
    """Return the size of all tensors in a tree, in bytes."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes_of, value.values())) if isinstance(value, dict) else 0
