"""Snapshots of the averages of a run: averages/step_XXXXXXXX.pt, from which averages of other lengths are computed.

They are rounded to float16, as those of the paper (Karras et al. 2024, arXiv:2312.02696, appendix C). Weights do not
need the range of bfloat16, and float16 rounds 8 times as finely. A tensor with a value beyond 65504 stays in float32.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_cli.checkpoints.format import read_tree, write_tree
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.errors import UserError
from ddpm_cli.files import sync_folder

log = logging.getLogger(__name__)

Averages = Mapping[int, Mapping[str, Tensor]]
"""The parameters of each average by its number, which is that of its length in train.ema_lengths."""


class Snapshot(NamedTuple):
    """The averages after `step` steps."""

    step: int
    averages: Averages


def rounded(averages: Averages) -> dict[int, dict[str, Tensor]]:
    """Return averages in the precision of a snapshot, on their device."""
    return {i: {name: _rounded(x) for name, x in own.items()} for i, own in averages.items()}


def _rounded(x: Tensor) -> Tensor:
    half = x.half()
    return half if half.isfinite().all() else x


def save_snapshot(folder: Path, step: int, lengths: Sequence[float], averages: Averages) -> None:
    """Write `averages`, which `rounded` returned, to a run folder, atomically and with a checksum. Raise `NoRoom`."""
    path = RunFolder(folder).snapshot(step)
    path.parent.mkdir(exist_ok=True)
    write_tree(path, {"step": step, "lengths": list(lengths), "averages": averages})
    sync_folder(path.parent)


def thin(folder: Path, keep: int | None, number_of: Callable[[int], int]) -> None:
    """Remove all snapshots except `keep` at most, which are spread over the run.

    Those are kept whose milestones are multiples of a power of two, the smallest that leaves `keep` with the newest.
    It depends on the newest milestone alone, so that a run which was resumed has the same snapshots.

    Args:
        keep: None for all.
        number_of: returns the number of the milestone at a step.
    """
    paths = RunFolder(folder).snapshots_by_step()
    if keep is None or not paths:
        return
    newest = max(paths)
    every = 1
    while number_of(newest) // every + 1 > keep:
        every *= 2
    kept: set[int] = set()
    for step, path in paths.items():
        number = number_of(step)
        if step != newest and (number % every != 0 or number in kept):
            path.unlink(missing_ok=True)
        kept.add(number)


def move_later_snapshots(folder: Path, step: int) -> None:
    """Move the snapshots after `step` to a subfolder, for a run that is resumed there."""
    run = RunFolder(folder)
    later = [path for number, path in run.snapshots_by_step().items() if number > step]
    if later:
        aside = run.snapshots / f"superseded_{time.time_ns()}"
        aside.mkdir()
        for path in later:
            path.replace(aside / path.name)


def read_snapshots(
    run: RunFolder, before: int, lengths: Sequence[float], like: Mapping[str, Tensor]
) -> Iterator[Snapshot]:
    """Yield the snapshots of a run before a step, in order; log and skip those that are damaged or of another network.

    like: the parameters of the network, to compare shapes with. The tensors are views of the mapped files.
    """
    for step, path in run.snapshots_by_step().items():
        if 0 < step < before:
            try:
                tree = read_tree("averages", path)
            except UserError as error:
                log.warning("%s", str(error).replace("name another", "it is left out"))
                continue
            if (tree.get("step"), tree.get("lengths")) != (step, [*lengths]) or not _fit(tree, len(lengths), like):
                log.warning("averages=%s: not a snapshot of this run; it is left out", path)
                continue
            yield Snapshot(step, tree["averages"])


def _fit(tree: Mapping[str, Any], count: int, like: Mapping[str, Tensor]) -> bool:
    """Return whether a file has `count` averages with the names and shapes of `like`, and finite values."""
    averages = tree.get("averages")
    if not isinstance(averages, dict) or [*averages] != [*range(count)]:
        return False
    for own in averages.values():
        if not isinstance(own, dict) or own.keys() != like.keys():
            return False
        for name, wanted in like.items():
            x = own[name]
            plain = type(x) is Tensor and x.layout == torch.strided and x.dtype in (torch.float16, torch.float32)
            if not plain or x.shape != wanted.shape or not x.isfinite().all():
                return False
    return True
