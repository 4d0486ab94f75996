"""What a run folder tells of a checkpoint in it, for its model card: how it was measured, its loss, its picture.

Whatever is missing there, cut short or not as it should be is passed over: a card is written all the same.
"""

import csv
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_cli.untrusted_files import content_of, text_of

MOST = 64 * 2**20
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
    for line in text_of(run / "evaluations.jsonl", MOST).splitlines():
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and (entry.get("step"), entry.get("weights")) == (step, kind):
                found.append(entry)
    return found


def _loss(run: Path, step: int) -> float | None:
    """The last one logged until then."""
    loss = None
    for row in csv.DictReader(text_of(run / "metrics.csv", MOST).splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            if int(row["step"]) <= step:
                loss = float(row["loss"])
    return loss


def _grid(run: Path, step: int) -> bytes | None:
    upto = [path for path in (run / "samples").glob("step_*.png") if _number(path) <= step]
    content = content_of(max(upto, key=_number), MOST) if upto else None
    return content if content and content.startswith(PNG) else None


def _number(path: Path) -> float:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else float("inf")
