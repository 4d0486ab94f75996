"""Comparison of runs: the settings in which they differ, the swept settings and report.csv."""

import csv
import io
import json
import math
import shlex
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from ddpm_cli.report.runs import Run

IGNORED = ("out", "resume", "resume_data_changed", "dataset.root")
"""Keys of paths."""
METRICS = [
    *("fid", "kid", "fd_classifier", "kd_classifier", "is", "is_classifier"),
    *("precision", "precision_classifier", "recall", "recall_classifier", "nll", "val_loss"),
]
"""Order of the metrics. Others follow, sorted by name."""
HIGHER = ("is", "precision", "recall")
"""First words of the names of metrics that are better when higher."""


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return each setting that differs between runs, with its value in each run as text.

    Settings that only some runs have are left out, because they follow from another option. So are settings that were
    not overridden on the command line of any run, if they are the same in all runs with the same option of their group.
    """
    typed = [_typed(run) for run in runs]
    # If all runs override a group, use the option typed, because `model=tiny` says more than `unet`.
    options = [key for key in (typed[0] if typed else {}) if "." not in key and all(key in one for one in typed)]
    settings = [_plain(run) | {key: one[key] for key in options} for run, one in zip(runs, typed, strict=True)]
    keys = [key for key in (settings[0] if settings else {}) if all(key in one for one in settings)]
    values = {key: [_text(one[key]) for one in settings] for key in keys}
    values = {key: texts for key, texts in values.items() if len(set(texts)) > 1}
    return {
        key: texts
        for key, texts in values.items()
        if any(key in one for one in typed) or not _follows(texts, values.get(key.split(".")[0], []))
    }


def swept(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return each override that differs, with its value in each run as typed, which is empty if it was not typed."""
    typed = [_typed(run) for run in runs]
    keys = dict.fromkeys(key for one in typed for key in one)
    values = {key: [one.get(key, "") for one in typed] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """Return the metrics of all runs, in the order of `METRICS`."""
    names = {name for run in runs for name in run.scores}
    return sorted(names, key=lambda name: (METRICS.index(name) if name in METRICS else len(METRICS), name))


def higher_is_better(metric: str) -> bool:
    """Return whether a higher value of `metric` is better."""
    return metric.split("_")[0] in HIGHER


def measured_differently(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the metrics that were not measured with the same settings in all runs, and these settings."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in metrics_of(runs):
        hows = [run.scores[name].how for run in runs if name in run.scores]
        keys = [key for key in dict.fromkeys(chain(*hows)) if len({how.get(key) for how in hows}) > 1]
        ways = dict.fromkeys(", ".join(f"{key}={how.get(key, '?')}" for key in keys) for how in hows)
        if keys:
            found.setdefault(tuple(ways), []).append(name)
    return {", ".join(names): list(ways) for ways, names in found.items()}


def command_of(run: Run) -> str:
    """Return the shell command that repeats a run in a new folder."""
    own = [text for text in run.overrides if text.partition("=")[0].lstrip("+~") not in ("out", "resume")]
    return shlex.join(["ddpm-train", *own])


def csv_of(runs: Sequence[Run]) -> str:
    """Return report.csv: one line per run, numbers with all digits."""
    settings, metrics = differing(runs), metrics_of(runs)
    columns: dict[str, Callable[[Run], Any]] = {
        "final_loss": lambda run: run.loss,
        "steps": lambda run: run.steps,
        "steps_planned": lambda run: run.planned,
        "seconds": lambda run: run.seconds,
        "images_per_second": lambda run: run.images_per_second,
        "path": lambda run: run.folder,
        "command": command_of,
    }
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", *settings, *metrics, *columns])
    for i, run in enumerate(runs):
        scores = [run.scores[name].value if name in run.scores else None for name in metrics]
        writer.writerow(
            [run.name, *(texts[i] for texts in settings.values()), *scores, *(of(run) for of in columns.values())]
        )
    return buffer.getvalue()


def is_table(head: str) -> bool:
    """Return whether a file that starts with `head` is a report.csv written by ddpm-report."""
    header = head.partition("\n")[0]
    return header.startswith("run,") and header.endswith(",images_per_second,path,command")


def number(text: str) -> float | None:
    """Return the number in `text`, or None if it is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in IGNORED}


def _typed(run: Run) -> dict[str, str]:
    """Return the overrides of a run by key."""
    pairs = (text.lstrip("+~").partition("=") for text in run.overrides)
    return {key: value for key, _, value in pairs if key not in IGNORED}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _follows(texts: Sequence[str], group: Sequence[str]) -> bool:
    """Return whether `texts` are determined by `group`, the values of their config group."""
    return len(group) > 0 and len(set(zip(group, texts, strict=True))) == len(set(group))
