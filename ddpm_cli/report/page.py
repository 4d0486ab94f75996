"""Build the report page, a single HTML file that includes the data, the pictures and the plotting library."""

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
    best_runs,
    changes_of,
    command_of,
    differing,
    finite_number,
    higher_is_better,
    measured_differently,
    metrics_of,
    swept,
)

GENERATOR = '<meta name="generator" content="ddpm-report">'
"""Identifies a page written by ddpm-report."""
SCRIPTS = (
    "page.helpers.js",
    "page.table.js",
    "page.plots.js",
    "page.pictures.js",
    "page.commands.js",
    "page.main.js",
)
"""Files of the script in the order in which they are joined."""
PAGE_BYTES = 9_400_000
"""Maximum size of a page with up to `PICTURED_RUNS` runs. With more runs, their text is added."""
PICTURED_RUNS = 12
"""Number of runs with pictures; with more runs, those of the best ones are shown."""
TEXT_BYTES = 400_000
"""Part of `PAGE_BYTES` that is reserved for everything except the pictures and the library."""
CURVE_POINTS = 500
"""Maximum number of points per loss curve."""
PAGE_POINTS = 60_000
"""Maximum number of points of all loss curves together, if there are fewer than 2,000 runs."""


def page_of(runs: Sequence[Run], title: str, plotly: str) -> str:
    """Return the HTML of a report. `plotly` is the source of plotly.js."""
    picture_bytes = (PAGE_BYTES - TEXT_BYTES - len(plotly.encode())) * 3 // 4  # base64: 4 characters per 3 bytes
    resources = files("ddpm_cli.report")
    parts = {
        "generator": GENERATOR,
        "title": html.escape(title),
        "style": (resources / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((resources / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "plotly": plotly.replace("</script", "<\\/script"),
        "data": _script_json(_page_data(runs, title, picture_bytes // min(PICTURED_RUNS, len(runs)))),
    }
    template = (resources / "page.html").read_text(encoding="utf-8")
    # A single pass, so that placeholders in the inserted text are not replaced.
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], template)


def is_page(head: str) -> bool:
    """Return True if a file that starts with `head` is a page written by ddpm-report."""
    return GENERATOR in head


def _script_json(data: Any) -> str:
    """Return JSON for a <script> element. "<" is escaped so that no text can close the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _page_data(runs: Sequence[Run], title: str, picture_bytes: int) -> dict[str, Any]:
    """Return the data for the script. `picture_bytes` is the maximum size of the pictures of each run that has some."""
    settings, overrides = differing(runs), swept(runs)
    pictured, compared_by = best_runs(runs, PICTURED_RUNS)
    return {
        "title": title,
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "settings": list(settings),
        "metrics": [{"name": name, "higher": higher_is_better(name)} for name in metrics_of(runs)],
        "incomparable": measured_differently(runs),
        "heat": [{"key": key, "values": _sorted_values(texts)} for key, texts in overrides.items()]
        if len(overrides) == 2
        else None,
        "pictured": f"of the {len(pictured)} runs with the best {compared_by}" if len(pictured) < len(runs) else None,
        "runs": [
            _run_data(run, CURVE_POINTS if len(runs) <= PAGE_POINTS // CURVE_POINTS else PAGE_POINTS // len(runs))
            | (_picture_data(run, picture_bytes) if i in pictured else {"pictured": False, "grids": {}, "film": None})
            | {"settings": {key: texts[i] for key, texts in settings.items()}}
            | {"swept": {key: texts[i] for key, texts in overrides.items()}}
            for i, run in enumerate(runs)
        ],
    }


def _picture_data(run: Run, picture_bytes: int) -> dict[str, Any]:
    film = small_film(run.film, picture_bytes // FILM_SHARE) if run.film else None
    grid_bytes = picture_bytes - picture_bytes // FILM_SHARE if film else picture_bytes
    return {
        "pictured": True,
        "grids": small_grids(run.grids, grid_bytes),
        "film": {"moving": film[0], "still": film[1]} if film else None,
    }


def _run_data(run: Run, curve_points: int) -> dict[str, Any]:
    steps, losses = _loss_curve(run.rows, curve_points)
    return {
        "name": run.name,
        "path": str(run.folder),
        "command": command_of(run),
        "changes": changes_of(run),
        "steps": run.steps,
        "planned": run.planned,
        "seconds": _finite_or_none(run.seconds),
        "speed": run.images_per_second,
        "loss": _finite_or_none(run.loss),
        "pruned": run.pruned,
        "diverged": run.loss is not None and not math.isfinite(run.loss),
        "scores": {
            name: {
                "value": score.value,
                "interval": score.interval,
                "step": score.step,
                "settings": ", ".join(f"{key}={value}" for key, value in score.settings.items()),
            }
            for name, score in run.scores.items()
        },
        "curve": {"steps": steps, "losses": losses},
    }


def _loss_curve(rows: Sequence[Row], points: int) -> tuple[list[int], list[float | None]]:
    """Return the steps and losses to plot.

    More rows than `points` are divided into groups of equal size, and each group is replaced by the mean of its finite
    losses. The loss is None if a group has no finite loss.
    """
    size = math.ceil(len(rows) / points) or 1
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [group[-1].step for group in groups], [_mean_of_finite([row.loss for row in group]) for group in groups]


def _mean_of_finite(losses: Sequence[float]) -> float | None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return _finite_or_none(float(f"{sum(finite) / len(finite):.5g}")) if finite else None


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _sorted_values(texts: Sequence[str]) -> list[str]:
    """Return the distinct values of `texts`, sorted if all are numbers, otherwise in order of first appearance."""
    values = list(dict.fromkeys(texts))
    numbers = [finite_number(text) for text in values]
    if None in numbers:
        return values
    return sorted(values, key=float)
