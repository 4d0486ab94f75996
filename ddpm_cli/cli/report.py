"""ddpm-report: compare runs in one HTML page."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm_cli.checkpoints.newest import OUTPUTS
from ddpm_cli.cli.app.error_messages import on_one_line
from ddpm_cli.cli.app.help import version_text
from ddpm_cli.cli.app.shorthands import without_plugins
from ddpm_cli.config.plugins import load_plugins
from ddpm_cli.errors import Failure, UserError
from ddpm_cli.tracking.terminal import status

USAGE = """
ddpm-report compares runs of ddpm-train in one HTML file, which needs no server and no internet connection.

  ddpm-report                                         a table of the runs below outputs/, in the terminal
  ddpm-report outputs/sweep/…                         all runs of a sweep
  ddpm-report outputs/train/digits outputs/sweep/…    runs of any folders, at any depth
  ddpm-report outputs/sweep/… out=page.html           instead of report.html in the first folder

A table of the same runs, report.csv (page.csv), is written beside the page. Only earlier reports are overwritten.
"""


def main() -> None:
    """Entry point of the console script."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("ddpm_cli").setLevel(logging.INFO)
    try:
        if {"--help", "-h"} & {*sys.argv[1:]}:
            print(USAGE.strip())
        elif "--version" in sys.argv[1:]:
            print(version_text())
        else:
            arguments = without_plugins(sys.argv[1:])
            load_plugins()
            run(*_parse_arguments(arguments)) if arguments else list_runs()
    except (UserError, Failure) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"ddpm-report: {on_one_line(str(error))}", file=sys.stderr)
        sys.exit(1 if isinstance(error, Failure) else 2)
    except KeyboardInterrupt:
        print("ddpm-report: interrupted", file=sys.stderr)
        sys.exit(130)


def list_runs() -> None:
    """Print a table of the runs below outputs/."""
    from ddpm_cli.report.listing import listing

    with status("reading the runs"):
        table = listing(OUTPUTS)
    print(table)


def run(folders: Sequence[str], out: Path) -> None:
    """Write the report of the runs in `folders` to `out`, and a table beside it."""
    from ddpm_cli.report.write import write_report

    write_report(folders, out)


def _parse_arguments(arguments: Sequence[str]) -> tuple[list[str], Path]:
    """Return the folders and the file to write. Raise `UserError`."""
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
