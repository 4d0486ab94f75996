"""Tables and plots of a sweep: quality over the number of network evaluations, or over the length of the average."""

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_cli.config import plugin_metrics
from ddpm_cli.config.averages import length_of
from ddpm_cli.files import write
from ddpm_cli.images.plots import save_tradeoff_plot

log = logging.getLogger(__name__)

COLUMNS = ["job", "ckpt", "weights", "sampler", "nfe", "metric", "value", "low", "high", "floor", "n"]
DISTANCES = ("fid", "fd_classifier", "kid", "kd_classifier")
"""Metrics that are plotted: the first one that was computed, or else one of a plugin, or the bound."""
Row = Mapping[str, Any]
Line = list[tuple[float, float, float, float]]


def save_tradeoff(sweep: Path) -> None:
    """Write tradeoff.csv and tradeoff.png to the folder of a sweep. Do nothing if no job evaluated samples.

    A sweep over weights=ema:… gets averages.csv and averages.png instead, over the relative length of the average.
    """
    rows = [row for file in _evaluation_files(sweep) for row in _job_rows(file)]
    averaged = [row for row in rows if length_of(row["weights"]) is not None]
    if len({row["weights"] for row in averaged}) > 1:
        _save_table(sweep / "averages.csv", rows)
        _save_plot(sweep / "averages.png", averaged, over_length=True)
    elif rows := [row for row in rows if row["nfe"] is not None]:
        _save_table(sweep / "tradeoff.csv", rows)
        _save_plot(sweep / "tradeoff.png", rows, over_length=False)


def _save_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())
    log.info("wrote %s", path)


def _save_plot(path: Path, rows: Sequence[Row], over_length: bool) -> None:
    """Plot a metric over the length of the average or the number of network calls, a line for what else differs."""
    measured = {row["metric"] for row in rows}
    metric = next((name for name in (*DISTANCES, *plugin_metrics(), "nll") if name in measured), None)
    if metric is None:
        return
    lines: dict[str, Line] = {}
    rows = [row for row in rows if row["metric"] == metric]
    for row in rows:
        interval = [row["value"] if row[end] is None else row[end] for end in ("low", "high")]
        at = length_of(row["weights"]) if over_length else row["nfe"]
        lines.setdefault(_line_name(row, rows, over_length), []).append((at, row["value"], *interval))
    floor = min(row["floor"] or 0.0 for row in rows)
    over = "relative length of the average" if over_length else "network calls per image"
    save_tradeoff_plot({name: sorted(points) for name, points in lines.items()}, metric, floor, path, over)
    log.info("wrote %s", path)


def _line_name(row: Row, rows: Sequence[Row], over_length: bool) -> str:
    """Return the name of the line that a point belongs to: its sampler, and what else differs among `rows`."""
    name = "bound" if row["sampler"] is None else str(row["sampler"])
    if over_length and len({(other["sampler"], other["nfe"]) for other in rows}) > 1:
        name += f", {row['nfe']} calls"
    if not over_length and len({other["weights"] for other in rows}) > 1:
        name += f", {row['weights']}"
    return f"{name} of {row['ckpt']}" if len({other["ckpt"] for other in rows}) > 1 else name


def _evaluation_files(sweep: Path) -> Iterable[Path]:
    """Return the evaluation.json of each job, sorted by the number of the job."""
    files = sweep.glob("*/evaluation.json")
    return sorted((file for file in files if file.parent.name.isdecimal()), key=lambda file: int(file.parent.name))


def _job_rows(file: Path) -> Iterable[dict[str, Any]]:
    """Yield a row of `COLUMNS` for each metric of generated samples, and for the bound, in an evaluation.json."""
    record = json.loads(file.read_text())
    if "ckpt" not in record:
        return
    of_all = {
        "job": int(file.parent.name),
        "ckpt": "/".join(Path(record["ckpt"]).parts[-3:]),  # <run name>/checkpoints/<file>
        "weights": record["weights"],
    }
    for metric, value in record["metrics"].items():
        if metric in record.get("floor", {}) and "nfe" in record and not metric.endswith("_std"):
            low, high = record["intervals"].get(metric, (None, None))
            drawn = {"sampler": record["sampler"]["name"], "nfe": record["nfe"], "n": record["n"]}
            measured = {"metric": metric, "value": value, "low": low, "high": high, "floor": record["floor"][metric]}
            yield {**of_all, **drawn, **measured}
        elif metric == "nll":
            spread = 1.96 * (record["nll"]["standard_error"] or 0.0)
            drawn = {"sampler": None, "nfe": None, "n": record["nll"]["n"]}
            measured = {"metric": metric, "value": value, "low": value - spread, "high": value + spread, "floor": None}
            yield {**of_all, **drawn, **measured}
