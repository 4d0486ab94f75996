"""Results of evaluations as lines of JSON in the evaluations.jsonl of the evaluated run."""

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
    """Return the run folder that contains a checkpoint, or None if it is not in one."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and (folder / ".hydra").is_dir() else None


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Return `record` as JSON. JSON has no NaN, so null replaces values that are not finite."""
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
    """Append `record` to the evaluations of `run` and send it to the loggers of the run.

    It is written in a single call, because other processes may append at the same time. Errors are logged as warnings.
    """
    line = f"{to_json(record)}\n".encode()
    try:
        file = os.open(run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        log.warning("%s: cannot be written (%s)", run / FILE, error.strerror)
    log_evaluation(record, run)
