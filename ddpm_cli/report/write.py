"""Write a report and its table. Implements ddpm-report."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ddpm_cli.errors import UserError
from ddpm_cli.files import amount, write
from ddpm_cli.report.page import is_page, page_of
from ddpm_cli.report.runs import find_runs
from ddpm_cli.report.table import csv_of, is_table
from ddpm_cli.tracking.terminal import status

log = logging.getLogger(__name__)

MAX_IN_TITLE = 3
"""Number of folders in the title of a page; a shell pattern may match dozens."""
HEAD_BYTES = 65_536
"""Bytes at the start of a file that identify a report."""


def write_report(folders: Sequence[str], out: Path) -> None:
    """Write the report of the runs in `folders` to `out`, and a table beside it.

    Raise `UserError` for folders without runs, or files that are not overwritten.
    """
    with status("reading the runs"):
        runs = find_runs(folders)
    table = out.with_suffix(".csv")
    plotly = _plotly()
    try:
        _check_overwrites(out, table)
        _create_folder(out.parent, out)
        with status("writing the page"):
            page = page_of(runs, _title(folders), plotly).encode()
        write(out, page)
        write(table, csv_of(runs).encode(errors="backslashreplace"))
    except (OSError, ValueError) as error:  # a name that is too long or contains a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"out={out}: cannot be written ({reason}); name another file") from error
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    log.info("%s in %s (%s) and %s", count, out, amount(len(page)), table)


def _title(folders: Sequence[str]) -> str:
    named, others = folders[:MAX_IN_TITLE], len(folders) - MAX_IN_TITLE
    return f"Runs in {', '.join(named)}" + (f" and {others} more" if others > 0 else "")


def _create_folder(folder: Path, out: Path) -> None:
    """Create `folder`. Raise `UserError` if it is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"out={out}: {folder} is not a folder; name another file") from error


def _check_overwrites(page: Path, table: Path) -> None:
    """Raise `UserError` unless these files do not exist or were written by ddpm-report."""
    for file, ours in ((page, is_page), (table, is_table)):
        if file.is_dir():
            raise UserError(f"out={page}: {file} is a folder; name another file")
        if os.path.lexists(file) and not ours(_head(file)):
            raise UserError(f"out={page}: {file} exists and is not a report; name another file")


def _head(file: Path) -> str:
    if not file.is_file():  # reading a pipe would block
        return ""
    with file.open("rb") as stream:
        return stream.read(HEAD_BYTES).decode(errors="replace")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # optional: pip install 'ddpm-cli[report]'
    except ImportError as error:
        raise UserError("plotly: is needed for the plots; pip install 'ddpm-cli[report]'") from error
    return get_plotlyjs()
