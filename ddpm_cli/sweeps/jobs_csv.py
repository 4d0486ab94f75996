"""jobs.csv in the folder of a sweep: how each job ended. Any number of processes may append to it at once."""

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ddpm_cli.files import NoRoom, no_room, write
from ddpm_cli.untrusted_files import text_of

FILE = "jobs.csv"
MAX_BYTES = 64 * 2**20
"""Largest table that is read."""


@dataclass(frozen=True)
class SweepJob:
    """A row of jobs.csv.

    Attributes:
        job: number of the job.
        status: done, pruned or failed.
        value: what the job returned.
        error: why it failed, in one line.
    """

    job: int
    status: str
    value: float | None
    seconds: float
    overrides: str
    error: str


COLUMNS = [field.name for field in fields(SweepJob)]


def create_jobs(folder: Path) -> None:
    """Create jobs.csv in the folder of a sweep, unless the sweep is resumed and has one."""
    if not (folder / FILE).exists():
        write(folder / FILE, f"{','.join(COLUMNS)}\n".encode())


def append_job(folder: Path, job: SweepJob) -> None:
    """Append a row to the sweep's jobs.csv. Raise `NoRoom`."""
    append_row(folder / FILE, ["" if value is None else str(value) for value in asdict(job).values()])


def jobs_of(folder: Path) -> dict[int, SweepJob]:
    """Return the last row of each job by its number; incomplete rows are left out."""
    found = {job.job: job for job in map(_parse_row, rows_of(folder / FILE)) if job is not None}
    return dict(sorted(found.items()))


def append_row(path: Path, cells: Sequence[str]) -> None:
    """Append a row, as a line of its own, to a CSV file that other processes may append to. Raise `NoRoom`.

    The file is locked, because appending is not atomic on network file systems.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([" ".join(cell.splitlines()) for cell in cells])
    row = text.getvalue().encode()
    try:
        with path.open("ab+", buffering=0) as stream:
            with suppress(OSError):  # the file system has no locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            end = stream.seek(0, os.SEEK_END)
            if end > 0 and os.pread(stream.fileno(), 1, end - 1) != b"\n":  # a crash has truncated the last row
                row = b"\n" + row
            if stream.write(row) < len(row):
                raise NoRoom(path, len(row))
    except OSError as error:
        if no_room(error):
            raise NoRoom(path, len(row)) from error
        raise


def rows_of(path: Path) -> Iterator[list[str]]:
    """Yield the cells of each line of a CSV file. A truncated line does not affect the lines after it."""
    for line in text_of(path, MAX_BYTES).split("\n"):
        with suppress(csv.Error):
            yield from csv.reader([line])


def _parse_row(row: list[str]) -> SweepJob | None:
    try:
        number, status, value, seconds, overrides, error = row
        return SweepJob(int(number), status, float(value) if value else None, float(seconds), overrides, error)
    except ValueError:
        return None
