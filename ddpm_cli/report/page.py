"""The report page: a single HTML file that contains its data, its pictures and the plotting library."""

import html
import json
import math
import re
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from ddpm_cli.report.pictures import FILM_SHARE, small_film, small_grids
from ddpm_cli.report.runs import Row, Run
from ddpm_cli.report.table import (
    command_of,
    differing,
    higher_is_better,
    measured_differently,
    metrics_of,
    number,
    swept,
)

GENERATOR = '<meta name="generator" content="ddpm-report">'
"""Identifies a page written by ddpm-report."""
SIZE = 9_400_000
"""Maximum total bytes of a page of up to `FULL` runs. Each further run adds as much as one of these."""
FULL = 12
TEXT = 400_000
"""Bytes of these for everything except pictures and the library."""
POINTS = 500
"""Maximum number of points of a loss curve."""


def page_of(runs: Sequence[Run], title: str, plotly: str) -> str:
    """Return the HTML of a report. `plotly` is the source of plotly.js."""
    pictures = (SIZE - TEXT - len(plotly.encode())) * 3 // 4  # base64 encodes 3 bytes as 4 characters
    resources = files("ddpm_cli.report")
    parts = {
        "generator": GENERATOR,
        "title": html.escape(title),
        "style": (resources / "page.css").read_text(encoding="utf-8"),
        "script": (resources / "page.js").read_text(encoding="utf-8"),
        "plotly": plotly.replace("</script", "<\\/script"),
        "data": _json(_data(runs, title, pictures // min(FULL, len(runs)))),
    }
    template = (resources / "page.html").read_text(encoding="utf-8")
    # In a single pass, so that inserted text is never taken for a placeholder.
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], template)


def is_page(head: str) -> bool:
    """Return whether a file that starts with `head` is a page written by ddpm-report."""
    return GENERATOR in head


def _json(data: Any) -> str:
    """Return JSON that is safe inside a <script> element, because nothing in it can end the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(runs: Sequence[Run], title: str, pictures: int) -> dict[str, Any]:
    """Return the data for page.js. `pictures` is the maximum number of bytes for the pictures of a run."""
    settings, overrides = differing(runs), swept(runs)
    return {
        "title": title,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "settings": list(settings),
        "metrics": [{"name": name, "higher": higher_is_better(name)} for name in metrics_of(runs)],
        "unlike": measured_differently(runs),
        "heat": [{"key": key, "values": _in_order(texts)} for key, texts in overrides.items()]
        if len(overrides) == 2
        else None,
        "runs": [
            _run(run, pictures)
            | {"settings": {key: texts[i] for key, texts in settings.items()}}
            | {"swept": {key: texts[i] for key, texts in overrides.items()}}
            for i, run in enumerate(runs)
        ],
    }


def _run(run: Run, pictures: int) -> dict[str, Any]:
    film = small_film(run.film, pictures // FILM_SHARE) if run.film else None
    left = pictures - pictures // FILM_SHARE if film else pictures
    steps, losses = _curve(run.rows)
    return {
        "name": run.name,
        "path": str(run.folder),
        "command": command_of(run),
        "steps": run.steps,
        "planned": run.planned,
        "seconds": _finite(run.seconds),
        "speed": run.images_per_second,
        "loss": _finite(run.loss),
        "diverged": run.loss is not None and not math.isfinite(run.loss),
        "scores": {
            name: {"value": score.value, "interval": score.interval, "step": score.step, "how": _joined(score.how)}
            for name, score in run.scores.items()
        },
        "curve": {"steps": steps, "losses": losses},
        "grids": small_grids(run.grids, left),
        "film": {"moving": film[0], "still": film[1]} if film else None,
    }


def _joined(how: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in how.items())


def _curve(rows: Sequence[Row]) -> tuple[list[int], list[float | None]]:
    """Return the steps and losses to plot: all rows or, if there are too many, means of groups of rows.

    A loss is None if no loss of its group is finite.
    """
    each = math.ceil(len(rows) / POINTS) or 1
    parts = [rows[i : i + each] for i in range(0, len(rows), each)]
    return [part[-1].step for part in parts], [_mean([row.loss for row in part]) for part in parts]


def _mean(losses: Sequence[float]) -> float | None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return _finite(float(f"{sum(finite) / len(finite):.5g}")) if finite else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _in_order(texts: Sequence[str]) -> list[str]:
    """Return the distinct values of `texts`, sorted if all are numbers, else in the order of appearance."""
    values = list(dict.fromkeys(texts))
    numbers = [number(text) for text in values]
    if None in numbers:
        return values
    return sorted(values, key=float)
