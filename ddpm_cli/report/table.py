"""Runs side by side: the settings in which they differ, what was swept, and report.csv."""

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
"""Keys of where things lie."""
METRICS = [
    *("fid", "kid", "fd_classifier", "kd_classifier", "is", "is_classifier"),
    *("precision", "precision_classifier", "recall", "recall_classifier", "nll", "val_loss"),
]
"""In this order; others follow by name."""
HIGHER = ("is", "precision", "recall")
"""How the names of metrics begin that are better when higher."""


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """For each setting that differs, its value in each run, as text.

    What only some runs have goes without saying, being another option's; so does what nobody typed, where runs of the
    same option of its group have the same.
    """
    typed = [_typed(run) for run in runs]
    # A group goes by the option typed, where all runs have one: `model=tiny` says more than `unet`.
    options = [key for key in (typed[0] if typed else {}) if "." not in key and all(key in one for one in typed)]
    told = [_plain(run) | {key: one[key] for key in options} for run, one in zip(runs, typed, strict=True)]
    keys = [key for key in (told[0] if told else {}) if all(key in one for one in told)]
    values = {key: [_text(one[key]) for one in told] for key in keys}
    values = {key: texts for key, texts in values.items() if len(set(texts)) > 1}
    return {
        key: texts
        for key, texts in values.items()
        if any(key in one for one in typed) or not _follows(texts, values.get(key.split(".")[0], []))
    }


def swept(runs: Sequence[Run]) -> dict[str, list[str]]:
    """For each override that differs, its value in each run as it was typed; nothing where it was not."""
    typed = [_typed(run) for run in runs]
    keys = dict.fromkeys(key for one in typed for key in one)
    values = {key: [one.get(key, "") for one in typed] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def metrics_of(runs: Sequence[Run]) -> list[str]:
    """The metrics that any run has."""
    names = {name for run in runs for name in run.scores}
    return sorted(names, key=lambda name: (METRICS.index(name) if name in METRICS else len(METRICS), name))


def higher_is_better(metric: str) -> bool:
    """Of a metric by its name."""
    return metric.split("_")[0] in HIGHER


def unlike(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Metrics that were not measured alike in all runs, and in which ways they were."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in metrics_of(runs):
        hows = [run.scores[name].how for run in runs if name in run.scores]
        keys = [key for key in dict.fromkeys(chain(*hows)) if len({how.get(key) for how in hows}) > 1]
        ways = dict.fromkeys(", ".join(f"{key}={how.get(key, '?')}" for key in keys) for how in hows)
        if keys:
            found.setdefault(tuple(ways), []).append(name)
    return {", ".join(names): list(ways) for ways, names in found.items()}


def command_of(run: Run) -> str:
    """The line that repeats a run, quoted for a shell; in a folder of its own."""
    own = [text for text in run.overrides if text.partition("=")[0].lstrip("+~") not in ("out", "resume")]
    return shlex.join(["ddpm-train", *own])


def csv_of(runs: Sequence[Run]) -> str:
    """report.csv: a line for each run, numbers in full."""
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
    """Whether a file that begins like this is a report.csv of ours."""
    header = head.partition("\n")[0]
    return header.startswith("run,") and header.endswith(",images_per_second,path,command")


def number(text: str) -> float | None:
    """What `text` says, if it is a finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in IGNORED}


def _typed(run: Run) -> dict[str, str]:
    """A run's overrides as key and value."""
    pairs = (text.lstrip("+~").partition("=") for text in run.overrides)
    return {key: value for key, _, value in pairs if key not in IGNORED}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _follows(texts: Sequence[str], group: Sequence[str]) -> bool:
    """Whether `texts` are the same wherever `group` is, which differs."""
    return len(group) > 0 and len(set(zip(group, texts, strict=True))) == len(set(group))
