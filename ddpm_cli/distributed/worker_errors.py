"""Hand an expected error of a worker to the launching process, in a file."""

import json
import os
from pathlib import Path

from ddpm_cli.errors import Failure, Stopped, UserError


def write_error(error: UserError | Failure | Stopped, path: Path) -> None:
    """Write an error to `path`, atomically. The last one of several workers is kept."""
    status = error.status if isinstance(error, Stopped) else None
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    kind = "UserError" if isinstance(error, UserError) else "Failure"
    partial.write_text(json.dumps({"kind": kind, "message": str(error), "status": status}))
    partial.replace(path)


def read_error(path: Path) -> UserError | Failure | Stopped:
    """Return the error that `write_error` wrote."""
    error = json.loads(path.read_text())
    if error["status"] is not None:
        return Stopped(error["status"] - 128, error["message"])
    return UserError(error["message"]) if error["kind"] == "UserError" else Failure(error["message"])
