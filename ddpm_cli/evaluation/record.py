"""What an evaluation found, as a line of JSON in evaluations.jsonl of the run that it judges."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FILE = "evaluations.jsonl"


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it does."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and (folder / ".hydra").is_dir() else None


def append(record: Mapping[str, Any], run: Path) -> None:
    """Add `record` to what was found of `run`, in one write, for others may be adding too. What fails is said."""
    line = f"{json.dumps(record, allow_nan=False)}\n".encode()
    try:
        file = os.open(run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        log.warning("%s: cannot be added to (%s)", run / FILE, error.strerror)
