"""The checkpoints of a run: checkpoints/step_XXXXXXXX.pt, and last.pt, which is the newest of them."""

import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ddpm_cli.checkpoints.format import CorruptCheckpoint, load_checkpoint, write_checkpoint
from ddpm_cli.errors import UserError
from ddpm_cli.files import atomic

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
"""What ddpm-export and ddpm-import call the network in their folders."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write the checkpoint of a state into a run folder, and make last.pt the same. Raises `NoRoom`."""
    path = folder / "checkpoints" / f"step_{state['step']:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    write_checkpoint(path, state)
    _make_last(path)
    return path


def prune(folder: Path, keep_last: int | None, window: float) -> None:
    """Remove all checkpoints but the newest `keep_last`, and the first one in each `window` steps from the first
    window on. None keeps all, and an infinite window none beside the newest.
    """
    if keep_last is None:
        return
    kept: set[int] = set()
    found = _by_step(folder)
    for step, path in found[:-keep_last]:
        number = math.floor(step / window)
        if number == 0 or number in kept:
            path.unlink(missing_ok=True)
        kept.add(number)


def find_checkpoint(key: str, value: str) -> Path:
    """The checkpoint that `value` names: a file, a run folder's last, or the one that ddpm-export or ddpm-import wrote
    into a folder. `key` is for the message.
    """
    path = Path(value).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{key}={value}: cannot be read ({reason}); name another") from error
    if is_folder:
        for file in (path / "checkpoints" / "last.pt", path / WEIGHTS):
            if file.is_file():
                return file
        raise UserError(f"{key}={value}: no checkpoint in this folder; a run writes checkpoints/last.pt")
    if not is_file:
        raise UserError(f"{key}={value}: no such file or folder; name a run folder or a checkpoint in one")
    return path


def newest_sound(key: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint in a run folder that is whole, and its contents; says which ones are not.

    Raises `UserError` where none is.
    """
    last = folder / "checkpoints" / "last.pt"  # the only one where a run was copied without the others
    for path in [*(path for _, path in reversed(_by_step(folder))), last]:
        if path.is_file():
            try:
                return path, load_checkpoint(key, path)
            except CorruptCheckpoint as error:
                log.warning("%s", str(error).replace("name another checkpoint", "going on from the one before it"))
    raise UserError(f"{key}={folder}: none of its checkpoints is whole; start anew")


def set_aside(folder: Path, step: int) -> None:
    """Move the checkpoints after `step` out of the way of a run that goes on from there, and make last.pt of its."""
    later = [path for number, path in _by_step(folder) if number > step]
    if later:
        aside = folder / "checkpoints" / f"superseded_{time.time_ns()}"
        aside.mkdir()
        for path in reversed(later):  # so that the newest one left is always on the way back
            path.replace(aside / path.name)
        log.warning("the %d checkpoints after step %d are in %s now; remove it if you like", len(later), step, aside)
    own = folder / "checkpoints" / f"step_{step:08d}.pt"
    if own.is_file():
        _make_last(own)


def _make_last(path: Path) -> None:
    with atomic(path.with_name("last.pt"), path.stat().st_size) as partial:
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, partial)


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """The steps of the checkpoints in a run folder, and their files, in order."""
    found = (folder / "checkpoints").glob("step_*.pt")
    return sorted((int(path.stem[5:]), path) for path in found if path.stem[5:].isdecimal())
