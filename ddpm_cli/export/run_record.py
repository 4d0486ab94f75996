"""Read facts about a checkpoint from its run folder, for the model card: evaluations, loss and sample grid.

Whatever is missing, truncated or malformed is skipped, so that a model card can always be written.
"""

import csv
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_cli.untrusted_files import content_of, text_of

MAX_BYTES = 64 * 2**20
"""Maximum bytes of a file that is read, far more than a run writes."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Record:
    """Facts about the weights of a checkpoint.

    evaluations: the lines of evaluations.jsonl about these weights, newest last. loss: the last one logged. grid: the
    PNG file of the last milestone.
    """

    evaluations: list[dict[str, Any]]
    loss: float | None
    grid: bytes | None


def record_of(checkpoint: Path, step: int, kind: str) -> Record:
    """Return the facts in the run folder of `checkpoint` about its `kind` weights, ema or model, after `step` steps."""
    if checkpoint.parent.name != "checkpoints":
        return Record([], None, None)
    run = checkpoint.parent.parent
    return Record(_evaluations(run, step, kind), _loss(run, step), _grid(run, step))


def _evaluations(run: Path, step: int, kind: str) -> list[dict[str, Any]]:
    found = []
    for line in text_of(run / "evaluations.jsonl", MAX_BYTES).splitlines():
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and (entry.get("step"), entry.get("weights")) == (step, kind):
                found.append(entry)
    return found


def _loss(run: Path, step: int) -> float | None:
    """Return the last loss logged up to `step`."""
    loss = None
    for row in csv.DictReader(text_of(run / "metrics.csv", MAX_BYTES).splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            if int(row["step"]) <= step:
                loss = float(row["loss"])
    return loss


def _grid(run: Path, step: int) -> bytes | None:
    upto = [path for path in (run / "samples").glob("step_*.png") if _number(path) <= step]
    content = content_of(max(upto, key=_number), MAX_BYTES) if upto else None
    return content if content and content.startswith(PNG) else None


def _number(path: Path) -> float:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else float("inf")
