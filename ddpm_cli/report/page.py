"""The page: one HTML file with its data, its pictures and a plotting library in it."""

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
from ddpm_cli.report.table import command_of, differing, higher_is_better, metrics_of, number, swept, unlike

GENERATOR = '<meta name="generator" content="ddpm-report">'
"""By which a page is known to be ours."""
SIZE = 9_400_000
"""Bytes of a page of up to `FULL` runs, all in all; each run beyond adds as much as one of these."""
FULL = 12
TEXT = 400_000
"""Of these for what is neither picture nor library."""
POINTS = 500
"""Of a loss curve."""


def page_of(runs: Sequence[Run], title: str, plotly: str) -> str:
    """The HTML of a report; `plotly`: the source of plotly.js."""
    pictures = (SIZE - TEXT - len(plotly.encode())) * 3 // 4  # base64 writes 3 bytes in 4 letters
    room = files("ddpm_cli.report")
    parts = {
        "generator": GENERATOR,
        "title": html.escape(title),
        "style": (room / "page.css").read_text(encoding="utf-8"),
        "script": (room / "page.js").read_text(encoding="utf-8"),
        "plotly": plotly.replace("</script", "<\\/script"),
        "data": _json(_data(runs, title, pictures // min(FULL, len(runs)))),
    }
    # In one go, so that nothing put in is taken for a place to put something.
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], (room / "page.html").read_text(encoding="utf-8"))


def is_page(head: str) -> bool:
    """Whether a file that begins like this is a page of ours."""
    return GENERATOR in head


def _json(data: Any) -> str:
    """JSON that may stand in a <script>: nothing in it can end that."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _data(runs: Sequence[Run], title: str, pictures: int) -> dict[str, Any]:
    """All that page.js shows; `pictures`: bytes for those of a run."""
    settings, overrides = differing(runs), swept(runs)
    return {
        "title": title,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "settings": list(settings),
        "metrics": [{"name": name, "higher": higher_is_better(name)} for name in metrics_of(runs)],
        "unlike": unlike(runs),
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
            name: {"value": score.value, "interval": score.interval, "step": score.step, "how": _words(score.how)}
            for name, score in run.scores.items()
        },
        "curve": {"steps": steps, "losses": losses},
        "grids": small_grids(run.grids, left),
        "film": {"moving": film[0], "still": film[1]} if film else None,
    }


def _words(how: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in how.items())


def _curve(rows: Sequence[Row]) -> tuple[list[int], list[float | None]]:
    """Steps and losses to draw: all rows or, of very many, means of some at a time; None where none is finite."""
    each = math.ceil(len(rows) / POINTS) or 1
    parts = [rows[i : i + each] for i in range(0, len(rows), each)]
    return [part[-1].step for part in parts], [_mean([row.loss for row in part]) for part in parts]


def _mean(losses: Sequence[float]) -> float | None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return _finite(float(f"{sum(finite) / len(finite):.5g}")) if finite else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _in_order(texts: Sequence[str]) -> list[str]:
    """The different ones of `texts`: numbers by size, others as they come."""
    values = list(dict.fromkeys(texts))
    numbers = [number(text) for text in values]
    if None in numbers:
        return values
    return sorted(values, key=float)
