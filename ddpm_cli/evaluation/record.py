"""What an evaluation found, as a line of JSON in evaluations.jsonl of the run that it judges."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_cli.tracking.loggers import log_evaluation

log = logging.getLogger(__name__)

FILE = "evaluations.jsonl"


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it does."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and (folder / ".hydra").is_dir() else None


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """`record` as JSON, which has no NaN: null stands for what is not finite, as of a network that diverged."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


def append(record: Mapping[str, Any], run: Path) -> None:
    """Add `record` to what was found of `run`, in one write, for others may be adding too, and tell the run's loggers.

    What fails is said.
    """
    line = f"{to_json(record)}\n".encode()
    try:
        file = os.open(run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        log.warning("%s: cannot be added to (%s)", run / FILE, error.strerror)
    log_evaluation(record, run)
