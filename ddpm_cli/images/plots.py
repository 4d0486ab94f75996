"""Plot losses, schedules, tables of examples, points, the terms of the variational bound and sweeps of samplers."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from ddpm_cli.files import write
from ddpm_cli.images.png_gif import to_image, to_uint8

EXTENT = 2.5
"""Limit of both axes of scatter plots, which show [-EXTENT, EXTENT]."""
DPI = 100
MAX_MARKED = 50
"""Largest number of milestones that are marked in the plot of the loss."""


def save_loss_plot(
    steps: Sequence[int],
    losses: Sequence[float],
    rates: Sequence[float],
    epochs: Mapping[int, float],
    milestones: Sequence[int],
    path: Path,
) -> None:
    """Plot the loss on a logarithmic scale, because it decreases mostly in the first steps, above the learning rate.

    epochs: the mean loss of each epoch by the last step of the epoch. milestones: steps to mark by vertical lines.
    """
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot(steps, losses, linewidth=1, alpha=0.5 if epochs else 1, label="loss")
    if epochs:
        above.plot(list(epochs), list(epochs.values()), "o-", markersize=4, label="mean of the epoch")
    for i, step in enumerate(milestones if len(milestones) <= MAX_MARKED else []):
        for axes in (above, below):
            axes.axvline(step, color="gray", linewidth=0.8, linestyle=":", label="" if i else "milestone")
    above.set(ylabel="loss", yscale="log")
    _label_log_axis(above.yaxis)
    if epochs or milestones:
        above.legend()
    below.plot(steps, rates, linewidth=1)
    below.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    below.yaxis.set_major_formatter("{x:g}")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.align_ylabels()
    _save_figure(figure, path)


def save_schedule_plot(amplitudes: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Plot the share of signal in the variance of x_t and the log-SNR over t, with a line for each schedule.

    `amplitudes` are those of x0 and of eps for each t. For a variance-preserving schedule the share is alphas_cumprod.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, tables in amplitudes.items():
        signal, noise = (np.square(table) for table in tables)
        left.plot(signal / (signal + noise), label=name)
        with np.errstate(divide="ignore"):  # the last timestep may have no signal
            right.plot(np.log(signal / noise), label=name)
    left.set(xlabel="t", ylabel="share of signal in the variance")
    right.set(xlabel="t", ylabel="log SNR")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    _save_figure(figure, path)


def save_labelled_rows(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], path: Path) -> None:
    """Plot a table of examples with named rows and columns.

    Each example is an image (C, H, W) in [-1, 1] or a set of points (N, 2).
    """
    count = len(columns)
    figure = Figure(figsize=(1.6 * count + 0.6, 1.6 * len(rows) + 0.3), layout="constrained")
    table = figure.subplots(len(rows), count, squeeze=False)
    for cells, (name, examples) in zip(table, rows.items(), strict=True):
        cells[0].set_ylabel(name)
        for cell, example in zip(cells, examples, strict=True):
            if example.ndim == 3:
                cell.imshow(to_image(to_uint8(example)), cmap="gray", vmin=0, vmax=255)
            else:
                _draw_points(cell, example, size=0.3)
            cell.set(xticks=[], yticks=[])
    for cell, heading in zip(table[0], columns, strict=True):
        cell.set_title(heading, fontsize=10)
    _save_figure(figure, path)


def scatter(points: Tensor) -> Image.Image:
    """Return a scatter plot of points (N, 2) as an RGB image."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    _draw_points(figure.subplots(), points, size=1.5)
    return Image.open(_to_png(figure)).convert("RGB")


def save_bound_plot(terms: Sequence[float], path: Path) -> None:
    """Plot the terms of the variational bound in bits per dimension, and their cumulative sum from t = 0."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(terms, linewidth=1)
    left.set(xlabel="t", ylabel="bits/dim of the term", yscale="log")
    if len(terms) > 1:
        left.set(xscale="symlog", xlim=(0, len(terms) - 1))
    sums = np.cumsum(terms)
    right.plot(sums)
    right.set(xlabel="t", ylabel="bits/dim of the terms 0 to t", ylim=(None if sums.min() < 0 else 0, None))
    for axes in (left, right):
        axes.grid(which="both", alpha=0.3)
    _save_figure(figure, path)


def save_tradeoff_plot(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
    metric: str,
    floor: float,
    path: Path,
    over: str = "network calls per image",
) -> None:
    """Plot `metric` over a quantity such as the number of network calls, with a line for each sampler.

    lines: points (calls, value, low, high) by sampler. floor: the value for real images, or 0 for none. over: the name
    of the quantity.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        calls, values, lows, highs = np.array(points).T
        axes.errorbar(
            calls, values, yerr=(values - lows, highs - values), fmt="o-", markersize=4, capsize=3, label=name
        )
    if floor > 0:
        axes.axhline(floor, color="gray", linestyle=":", label="floor: real images")
    logarithmic = floor > 0 and all(point[2] > 0 for points in lines.values() for point in points)
    axes.set(xlabel=over, ylabel=metric, xscale="log", yscale="log" if logarithmic else "linear")
    if logarithmic:
        _label_log_axis(axes.yaxis)
    ticks = sorted({point[0] for points in lines.values() for point in points})
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    _save_figure(figure, path)


def _label_log_axis(axis: YAxis) -> None:
    """Label a logarithmic axis with plain numbers such as 0.2 and 0.3 instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _draw_points(axes: Axes, points: Tensor, size: float) -> None:
    """Draw points (N, 2) with markers of `size` (see `Axes.scatter`)."""
    x, y = points.cpu().T.numpy()
    axes.scatter(x, y, s=size, linewidths=0)
    axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")


def _save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as PNG, atomically."""
    write(path, _to_png(figure).getvalue())


def _to_png(figure: Figure) -> io.BytesIO:
    """Return `figure` as a PNG file in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer
