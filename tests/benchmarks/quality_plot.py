"""Plot of the distance against the training minutes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ddpm_cli.files import write


def save_quality_plot(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], marks: Mapping[int, float], path: Path
) -> None:
    """Draw a curve of points (minutes, distance, low, high) per system, and a line at each distance in `marks`.

    The keys of `marks` are numbers of epochs.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        minutes, distances, lows, highs = np.array(points).T
        spans = np.maximum((distances - lows, highs - distances), 0)
        axes.errorbar(minutes, distances, yerr=spans, fmt="o-", markersize=4, capsize=3, label=name)
    for number, (epochs, distance) in enumerate(marks.items(), start=1):
        axes.axhline(distance, color="gray", linestyle=":", linewidth=1)
        at = {"xycoords": ("axes fraction", "data"), "ha": "center", "fontsize": 8}
        at["va"] = "top" if number == len(marks) else "bottom"
        axes.annotate(f"annotated, {epochs} epoch{'s' * (epochs > 1)}", (0.17 * number, distance), **at)
    axes.set(xlabel="minutes of training", ylabel="fd_classifier", xscale="log", yscale="log")
    axes.grid(which="both", alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write(path, buffer.getvalue())
