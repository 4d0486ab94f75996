"""Table and plot of sample quality over the number of network evaluations, for a sweep over samplers."""

import csv
import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm_cli.config import plugin_metrics
from ddpm_cli.files import write
from ddpm_cli.images.plots import save_tradeoff_plot

log = logging.getLogger(__name__)

COLUMNS = ["job", "ckpt", "sampler", "nfe", "metric", "value", "low", "high", "floor", "n"]
DISTANCES = ("fid", "fd_classifier", "kid", "kd_classifier")
"""Metrics that are plotted: the first one that was computed, or else one of a plugin."""


def save_tradeoff(sweep: Path) -> None:
    """Write tradeoff.csv and tradeoff.png to the folder of a sweep. Do nothing if no job evaluated samples."""
    rows = [row for file in _evaluation_files(sweep) for row in _job_rows(file)]
    if not rows:
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write(sweep / "tradeoff.csv", text.getvalue().encode())
    measured = {row["metric"] for row in rows}
    metric = next((name for name in (*DISTANCES, *plugin_metrics()) if name in measured), None)
    if metric is None:
        log.info("wrote tradeoff.csv to %s", sweep)
        return
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    several = len({row["ckpt"] for row in rows}) > 1
    for row in rows:
        if row["metric"] == metric:
            name = f"{row['sampler']} of {row['ckpt']}" if several else row["sampler"]
            interval = [row["value"] if row[end] is None else row[end] for end in ("low", "high")]
            lines.setdefault(name, []).append((row["nfe"], row["value"], *interval))
    floor = min(row["floor"] for row in rows if row["metric"] == metric)
    save_tradeoff_plot({name: sorted(points) for name, points in lines.items()}, metric, floor, sweep / "tradeoff.png")
    log.info("wrote tradeoff.csv and tradeoff.png to %s", sweep)


def _evaluation_files(sweep: Path) -> Iterable[Path]:
    """Return the evaluation.json of each job, sorted by the number of the job."""
    files = sweep.glob("*/evaluation.json")
    return sorted((file for file in files if file.parent.name.isdecimal()), key=lambda file: int(file.parent.name))


def _job_rows(file: Path) -> Iterable[dict[str, Any]]:
    """Yield a row of `COLUMNS` for each metric of generated samples in an evaluation.json."""
    record = json.loads(file.read_text())
    for metric, value in record["metrics"].items():
        if metric in record.get("floor", {}) and "nfe" in record and not metric.endswith("_std"):
            low, high = record["intervals"].get(metric, (None, None))
            yield {
                "job": int(file.parent.name),
                "ckpt": "/".join(Path(record["ckpt"]).parts[-3:]),  # <run name>/checkpoints/<file>
                "sampler": record["sampler"]["name"],
                "nfe": record["nfe"],
                "metric": metric,
                "value": value,
                "low": low,
                "high": high,
                "floor": record["floor"][metric],
                "n": record["n"],
            }
