"""Compare the settings and metrics of runs and write them as report.csv."""

import csv
import io
import json
import math
import shlex
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from ddpm_cli.checkpoints.notes import key_of
from ddpm_cli.config import plugin_metrics
from ddpm_cli.report.runs import Run

IGNORED = ("out", "resume", "resume_data_changed", "dataset.root", "sweep.resume")
"""Settings that contain paths or are specific to a resumed run, and are not compared."""
METRIC_ORDER = [
    *("fid", "kid", "fd_classifier", "kd_classifier", "is", "is_classifier"),
    *("precision", "precision_classifier", "recall", "recall_classifier", "nll", "val_loss"),
]
"""Order of the metrics. Other metrics follow, sorted by name."""
HIGHER_IS_BETTER = ("is", "precision", "recall")
"""First words of the names of metrics for which higher values are better."""


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the settings that differ between runs, with the value in each run as text.

    Settings that only some of the runs have are excluded, because they depend on the option of a config group.
    Settings that no run overrides on the command line are excluded if the option of their group determines them.
    """
    overrides = [_overrides_by_key(run) for run in runs]
    # If all runs override a group, use the name of the option: `model=tiny` is more specific than `unet`.
    first = overrides[0] if overrides else {}
    options = [key for key in first if "." not in key and all(key in one for one in overrides)]
    settings = [
        _comparable_settings(run) | {key: typed[key] for key in options}
        for run, typed in zip(runs, overrides, strict=True)
    ]
    keys = [key for key in (settings[0] if settings else {}) if all(key in one for one in settings)]
    values = {key: [_as_text(one[key]) for one in settings] for key in keys}
    values = {key: texts for key, texts in values.items() if len(set(texts)) > 1}
    return {
        key: texts
        for key, texts in values.items()
        if any(key in one for one in overrides) or not _determined_by_group(texts, values.get(key.split(".")[0], []))
    }


def swept(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the overrides that differ between runs, with the value in each run, or "" if the run has none."""
    overrides = [_overrides_by_key(run) for run in runs]
    keys = dict.fromkeys(key for one in overrides for key in one)
    values = {key: [one.get(key, "") for one in overrides] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """Return the names of the metrics of all runs, in the order of `METRIC_ORDER`."""
    names = {name for run in runs for name in run.scores}
    order = {name: i for i, name in enumerate(METRIC_ORDER)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def higher_is_better(metric: str) -> bool:
    """Return True if higher values of `metric` are better."""
    of_plugins = plugin_metrics()
    return of_plugins[metric].higher_is_better if metric in of_plugins else metric.split("_")[0] in HIGHER_IS_BETTER


def best_runs(runs: Sequence[Run], count: int) -> tuple[list[int], str]:
    """Return the indices of the best runs, at most `count` and in their order, and what they are compared by.

    That is the first metric, or the final loss if there are no metrics.
    """
    name = next(iter(metrics_of(runs)), None)
    sign = -1 if name is not None and higher_is_better(name) else 1

    def place(i: int) -> float:
        score = runs[i].scores.get(name) if name is not None else None
        value = runs[i].loss if name is None else score.value if score is not None else None
        return math.inf if value is None or math.isnan(value) else sign * value

    return sorted(sorted(range(len(runs)), key=place)[:count]), name or "final loss"


def measured_differently(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the metrics that were measured with different settings, as a map from their names to the settings."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in metrics_of(runs):
        settings = [run.scores[name].settings for run in runs if name in run.scores]
        keys = [key for key in dict.fromkeys(chain(*settings)) if len({each.get(key) for each in settings}) > 1]
        variants = dict.fromkeys(", ".join(f"{key}={each.get(key, '?')}" for key in keys) for each in settings)
        if keys:
            found.setdefault(tuple(variants), []).append(name)
    return {", ".join(names): list(variants) for variants, names in found.items()}


def command_of(run: Run) -> str:
    """Return the shell command that trains a new run with the overrides of a run, those of its resumes included."""
    overrides = [text for text in run.overrides if key_of(text) not in ("out", "resume")]
    return shlex.join(["ddpm-train", *overrides])


def changes_of(run: Run) -> str:
    """Return the overrides that a run was resumed with, each with the step from which they apply; "" without any."""
    return "; ".join(f"from step {change.step}: {shlex.join(change.overrides)}" for change in run.changes)


def csv_of(runs: Sequence[Run]) -> str:
    """Return the content of report.csv, with one line per run and numbers at full precision."""
    settings, metrics = differing(runs), metrics_of(runs)
    columns: dict[str, Callable[[Run], Any]] = {
        "final_loss": lambda run: run.loss,
        "steps": lambda run: run.steps,
        "steps_planned": lambda run: run.planned,
        "pruned": lambda run: "yes" if run.pruned else "",
        "changes": changes_of,
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
    """Return True if a file that starts with `head` is a report.csv written by ddpm-report."""
    header = head.partition("\n")[0]
    return header.startswith("run,") and header.endswith(",images_per_second,path,command")


def finite_number(text: str) -> float | None:
    """Return the number in `text`, or None if it is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _comparable_settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in IGNORED}


def _overrides_by_key(run: Run) -> dict[str, str]:
    """Return the overrides of a run by key."""
    pairs = (text.lstrip("+~").partition("=") for text in run.overrides)
    return {key: value for key, _, value in pairs if key not in IGNORED}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _determined_by_group(texts: Sequence[str], options: Sequence[str]) -> bool:
    """Return True if runs with the same option of a config group have the same text."""
    return len(options) > 0 and len(set(zip(options, texts, strict=True))) == len(set(options))
