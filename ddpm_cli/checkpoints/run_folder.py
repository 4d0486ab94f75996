"""Run folders: their layout, reading what is in them, claiming a new one, and the lock of the process that trains."""

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml

from ddpm_cli.errors import UserError
from ddpm_cli.files import remove_partials
from ddpm_cli.shell import override
from ddpm_cli.untrusted_files import text_of

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
"""Name of the weights in the folders that ddpm-export and ddpm-import write."""
NOTES = ".hydra"
LOCK = ".lock"
OURS = (
    NOTES,
    LOCK,
    "train.log",
    "metrics.csv",
    "loss.png",
    "evaluations.jsonl",
    "checkpoints",
    "averages",
    "samples",
    "tensorboard",
    "wandb",
)
"""Names of the files and folders that a run writes."""
FOLDERS = (NOTES, "checkpoints", "averages", "samples", "tensorboard", "wandb")
"""Those that are folders."""
BEFORE_A_CHECKPOINT = {NOTES, LOCK, "train.log", "checkpoints"}
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader of libyaml, 16 times faster than that in Python; PyYAML may have been built without it."""
MAX_CONFIG_BYTES = 2**16
"""Largest config file that is read, many times its usual size."""
MAX_BYTES = 64 * 2**20
"""Largest metrics.csv and evaluations.jsonl that are read."""


@dataclass(frozen=True)
class RunFolder:
    """The layout of a run folder.

    The methods that read files skip what is missing, truncated or not valid, since anyone can send a run folder.
    """

    path: Path

    @classmethod
    def of(cls, checkpoint: Path) -> Optional["RunFolder"]:
        """Return the run folder that contains `checkpoint`, or None if it is in none."""
        return cls(checkpoint.parent.parent) if checkpoint.parent.name == "checkpoints" else None

    @property
    def notes(self) -> Path:
        return self.path / NOTES

    @property
    def config(self) -> Path:
        return self.notes / "config.yaml"

    @property
    def overrides(self) -> Path:
        return self.notes / "overrides.yaml"

    @property
    def changes(self) -> Path:
        return self.notes / "changes.yaml"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def snapshots(self) -> Path:
        return self.path / "averages"

    @property
    def film(self) -> Path:
        return self.path / "samples" / "film.gif"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}.pt"

    def snapshot(self, step: int) -> Path:
        return self.snapshots / f"step_{step:08d}.pt"

    def grid(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:08d}.png"

    def checkpoints_by_step(self) -> dict[int, Path]:
        """Return the checkpoints, in order."""
        return _by_step(self.checkpoints.glob("step_*.pt"))

    def snapshots_by_step(self) -> dict[int, Path]:
        """Return the snapshots of the averages, in order."""
        return _by_step(path for path in self.snapshots.glob("step_*.pt") if path.is_file())

    def grids_by_step(self) -> dict[int, Path]:
        """Return the sample grids of the milestones, in order."""
        return _by_step(path for path in (self.path / "samples").glob("step_*.png") if path.is_file())

    def is_run(self) -> bool:
        """Return whether a run has written its config and metrics to this folder."""
        return self.config.is_file() and self.metrics.is_file()

    def read_config(self) -> Any:
        """Return the content of .hydra/config.yaml, or None."""
        return _read_yaml(self.config)

    def read_overrides(self) -> list[str]:
        """Return the overrides that were typed when the run was started."""
        overrides = _read_yaml(self.overrides)
        return [text for text in overrides if isinstance(text, str)] if isinstance(overrides, list) else []

    def read_changes(self) -> list[Any]:
        """Return the content of .hydra/changes.yaml, or an empty list; see `notes.read_changes`."""
        changes = _read_yaml(self.changes)
        return changes if isinstance(changes, list) else []

    def read_metrics(self, max_bytes: int = MAX_BYTES) -> list[dict[str, str]]:
        """Return the rows of metrics.csv as texts. The last line is left out if a crash has truncated it."""
        complete = text_of(self.metrics, max_bytes).rpartition("\n")[0]
        rows: list[dict[str, str]] = []
        try:
            rows.extend(csv.DictReader(io.StringIO(complete)))
        except csv.Error:  # for example, a field longer than the limit of the csv module
            log.warning("%s: not readable after %d rows", self.metrics, len(rows))
        return rows

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Return the records in evaluations.jsonl, oldest first."""
        records = []
        for line in text_of(self.evaluations, MAX_BYTES).splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # for example, a line truncated by a crash
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
        return records


def _by_step(paths: Iterator[Path]) -> dict[int, Path]:
    digits = {path.stem.removeprefix("step_"): path for path in paths}
    return dict(sorted((int(step), path) for step, path in digits.items() if step.isdecimal() and len(step) < 16))


def _read_yaml(path: Path) -> Any:
    text = text_of(path, MAX_CONFIG_BYTES)
    try:
        try:
            return yaml.load(text, SAFE_LOADER)
        except yaml.YAMLError:
            return yaml.safe_load(text)  # which also accepts names of files that are not valid Unicode
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        log.warning("%s: skipped because it is not valid YAML", path)
        return None


def new_folder(folder: Path) -> None:
    """Create `folder`. Raise `UserError` if it is not empty."""
    if _create(folder):
        raise UserError(f"out={folder}: already contains files; choose another folder")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create the folder of a new run and hold it within the context. If two processes try at once, one succeeds.

    The folder must be new or empty, or that of a run which ended before its first checkpoint. Raise `UserError` if it
    contains anything else.
    """
    _check_free(folder)
    with locked("out", folder):
        _check_free(folder)  # again, because another process may have claimed it in between
        (folder / NOTES).mkdir(exist_ok=True)
        remove_partials(folder)
        yield


@contextmanager
def reopened(key: str, folder: Path) -> Iterator[None]:
    """Hold the folder of a run to resume. Raise `UserError` if another process holds it or it has links or pipes."""
    run = RunFolder(folder)
    for path in (*(folder / name for name in OURS), run.config, run.changes):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            raise UserError(
                f"{key}={folder}: its {name} is a symbolic link, which a run does not write through; remove it"
            )
        if path.exists() and not (path.is_dir() if name in FOLDERS else path.is_file()):  # reading a pipe would block
            raise UserError(f"{key}={folder}: its {name} was not written by a run; remove it")
    with locked(key, folder):
        remove_partials(folder)
        yield


@contextmanager
def locked(key: str, folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which the kernel releases even after a crash. Raise `UserError` if it is taken."""
    try:
        stream = (folder / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written to ({error.strerror}); choose another folder") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read(200).strip() or "another process"
            raise UserError(f"{key}={folder}: {holder} is running there; wait until it ends, or end it") from error
        except OSError as error:
            log.warning("%s: the file system has no locks (%s); run no other process there", folder, error.strerror)
        with contextlib.suppress(OSError):  # on a full disk the message above lacks the name of the process
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
        yield


@contextmanager
def log_into(file: Path) -> Iterator[None]:
    """Also write all log lines to `file`, with the time; errors of a full disk are ignored."""
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # it would print a traceback
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _check_free(folder: Path) -> None:
    if not _create(folder):
        return
    names = {path.name for path in folder.iterdir()}
    without_checkpoint = LOCK in names and names <= BEFORE_A_CHECKPOINT and not any(folder.glob("checkpoints/*.pt"))
    if NOTES in names and not without_checkpoint:
        raise UserError(
            f"out={folder}: already contains a run; {override('resume', folder)} continues it, another out=… starts a "
            "new one"
        )
    if not without_checkpoint:
        raise UserError(f"out={folder}: already contains files; choose another folder")


def _create(folder: Path) -> bool:
    """Create `folder` and return whether it contains anything. Raise `UserError` if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return any(folder.iterdir())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"out={folder}: cannot be created ({reason}); choose another folder") from error
