"""Write results of evaluations to evaluations.jsonl in the folder of the evaluated run."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.tracking.loggers import log_evaluation

log = logging.getLogger(__name__)


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Return `record` as JSON. Values that are not finite become null, because JSON does not support them."""
    return json.dumps(_replace_nonfinite(record), indent=indent, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    """Return `value` with None for all floats in it that are not finite, and with lists for tuples."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _replace_nonfinite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_replace_nonfinite(inner) for inner in value]
    return value


def append(record: Mapping[str, Any], run: Path) -> None:
    """Append `record` as a line to evaluations.jsonl of `run` and send it to the loggers of the run.

    The line is written by a single call, because other processes may append at the same time. If it cannot be written,
    a warning is logged.
    """
    line, path = f"{to_json(record)}\n".encode(), RunFolder(run).evaluations
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        log.warning("%s: cannot be written (%s)", path, error.strerror)
    log_evaluation(record, run)
