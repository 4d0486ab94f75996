"""What a run folder tells of a checkpoint in it, for its model card: how it was measured, its loss, its picture.

Whatever is missing there, cut short or not as it should be is passed over: a card is written all the same.
"""

import csv
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20
"""Bytes of a file that is read: far more than a run leaves."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Record:
    """evaluations: lines of evaluations.jsonl on these weights, newest last. grid: a PNG of the last milestone."""

    evaluations: list[dict[str, Any]]
    loss: float | None
    grid: bytes | None


def record_of(checkpoint: Path, step: int, kind: str) -> Record:
    """What the run that `checkpoint` lies in tells of its `kind` weights, ema or model, after `step` steps."""
    if checkpoint.parent.name != "checkpoints":
        return Record([], None, None)
    run = checkpoint.parent.parent
    return Record(_evaluations(run, step, kind), _loss(run, step), _grid(run, step))


def _evaluations(run: Path, step: int, kind: str) -> list[dict[str, Any]]:
    found = []
    for line in _content(run / "evaluations.jsonl").decode(errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and (entry.get("step"), entry.get("weights")) == (step, kind):
                found.append(entry)
    return found


def _loss(run: Path, step: int) -> float | None:
    """The last one logged until then."""
    loss = None
    for row in csv.DictReader(_content(run / "metrics.csv").decode(errors="replace").splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            if int(row["step"]) <= step:
                loss = float(row["loss"])
    return loss


def _grid(run: Path, step: int) -> bytes | None:
    upto = [path for path in (run / "samples").glob("step_*.png") if _number(path) <= step]
    content = _content(max(upto, key=_number)) if upto else b""
    return content if content.startswith(PNG) else None


def _number(path: Path) -> float:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else float("inf")


def _content(file: Path) -> bytes:
    """Nothing where it is no plain file, a link among others, or cannot be read."""
    try:
        plain = file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST
        return file.read_bytes() if plain else b""
    except OSError:
        return b""
