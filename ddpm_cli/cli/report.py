"""ddpm-report: runs side by side, in a page that needs nothing beside itself."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm_cli.cli.error_messages import on_one_line
from ddpm_cli.errors import Failure, UserError

log = logging.getLogger(__name__)

USAGE = """
ddpm-report shows runs of ddpm-train side by side, in one HTML file that opens from disk, without a network.

  ddpm-report outputs/sweep/…                         all runs of a sweep
  ddpm-report outputs/train/digits outputs/sweep/…    runs of any folders, at any depth
  ddpm-report outputs/sweep/… out=page.html           report.html in the first folder, otherwise

Beside the page lies a table of the same runs, report.csv (page.csv). A report of before is replaced, nothing else is.
"""

IN_TITLE = 3
"""Folders that are named in a page's title; a shell may spell out dozens."""
HEAD = 65_536
"""Bytes at the beginning of a file, in which a report of ours shows."""


def main() -> None:
    """The console script. An error that the user can mend is one line on stderr and exit status 2, as elsewhere."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("ddpm_cli").setLevel(logging.INFO)
    try:
        if {"--help", "-h"} & {*sys.argv[1:]}:
            print(USAGE.strip())
        else:
            run(*_folders_and_page(sys.argv[1:]))
    except (UserError, Failure) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"ddpm-report: {on_one_line(str(error))}", file=sys.stderr)
        sys.exit(1 if isinstance(error, Failure) else 2)
    except KeyboardInterrupt:
        print("ddpm-report: interrupted", file=sys.stderr)
        sys.exit(130)


def run(folders: Sequence[str], out: Path) -> None:
    """Write the report of the runs in `folders` to `out`, and its table beside it."""
    from ddpm_cli.files import amount, write
    from ddpm_cli.report.page import page_of
    from ddpm_cli.report.runs import find_runs
    from ddpm_cli.report.table import csv_of

    runs = find_runs(folders)
    table = out.with_suffix(".csv")
    plotly = _plotly()
    try:
        _check_ours(out, table)
        _make(out.parent, out)
        page = page_of(runs, _title(folders), plotly).encode()
        write(out, page)
        write(table, csv_of(runs).encode(errors="backslashreplace"))
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"out={out}: cannot be written ({reason}); name another file") from error
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    log.info("%s in %s (%s) and %s", count, out, amount(len(page)), table)


def _title(folders: Sequence[str]) -> str:
    named, others = folders[:IN_TITLE], len(folders) - IN_TITLE
    return f"Runs in {', '.join(named)}" + (f" and {others} more" if others > 0 else "")


def _make(folder: Path, out: Path) -> None:
    """Create `folder`, before there is any work that could be lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"out={out}: {folder} is no folder; name another file") from error


def _folders_and_page(arguments: Sequence[str]) -> tuple[list[str], Path]:
    """The folders and the file to write. Raises `UserError`."""
    folders: list[str] = []
    out = None
    words = iter(arguments)
    for word in words:
        if word == "--out":
            out = next(words, "")
        elif word.startswith(("out=", "--out=")):
            out = word.partition("=")[2]
        elif word.startswith("-"):
            raise UserError(f"{word}: no such option; ddpm-report takes folders and out=….html")
        else:
            folders.append(word)
    if not folders:
        raise UserError("folders: none given; name a run, or a folder of some, as in ddpm-report outputs/sweep/…")
    if out is not None and not out.endswith(".html"):
        raise UserError(f"out={out}: must be a file that ends in .html")
    return folders, Path(folders[0]).expanduser() / "report.html" if out is None else Path(out).expanduser()


def _check_ours(page: Path, table: Path) -> None:
    """Raise `UserError` unless these files are absent, or were written by ddpm-report."""
    from ddpm_cli.report.page import is_page
    from ddpm_cli.report.table import is_table

    for file, ours in ((page, is_page), (table, is_table)):
        if file.is_dir():
            raise UserError(f"out={page}: {file} is a folder; name another file")
        if os.path.lexists(file) and not ours(_head(file)):
            raise UserError(f"out={page}: {file} is there already, and no report of ours; name another file")


def _head(file: Path) -> str:
    if not file.is_file():  # a pipe would be waited for
        return ""
    with file.open("rb") as stream:
        return stream.read(HEAD).decode(errors="replace")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # optional: pip install 'ddpm-cli[report]'
    except ImportError as error:
        raise UserError("plotly: needed to draw; pip install 'ddpm-cli[report]'") from error
    return get_plotlyjs()
