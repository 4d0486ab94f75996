"""A table of runs for the terminal."""

import time
from pathlib import Path

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.report.runs import Run, find_runs

HEADER = ("run", "dataset", "experiment", "steps", "loss", "last metric", "age")
AGES = (("d", 86_400), ("h", 3_600), ("min", 60))
"""Units of an age and their seconds."""


def listing(folder: Path) -> str:
    """Return a table of the runs below `folder`, newest first. Raise `UserError` if there are none."""
    ages = [(time.time() - RunFolder(run.folder).metrics.stat().st_mtime, run) for run in find_runs([str(folder)])]
    rows = [HEADER, *(_row(run, age) for age, run in sorted(ages, key=lambda pair: pair[0]))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(run: Run, age: float) -> tuple[str, ...]:
    experiment = next((word.partition("=")[2] for word in run.overrides if word.startswith("experiment=")), "-")
    metric = next((f"{name} {score.value:.4g}" for name, score in reversed(run.scores.items())), "-")
    loss = "-" if run.loss is None else f"{run.loss:.4g}"
    steps = f"{run.steps} of {run.planned or '?'}"
    return str(run.folder), str(run.settings.get("dataset", "-")), experiment, steps, loss, metric, _age(age)


def _age(seconds: float) -> str:
    """Return an age such as `3 min`, `5 h` or `2 d`."""
    return next((f"{seconds / size:.0f} {unit}" for unit, size in AGES if seconds >= size), f"{seconds:.0f} s")
