"""Between tensors in [-1, 1] and what people look at: PNGs, grids, films, plots."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ddpm_cli.files import atomic

CELL = 56  # pixels: smaller images are enlarged in grids by whole factors
GAP = 2
WHITE = 255
FILM_SECONDS = 4.0
LAST_FRAME_SECONDS = 2.0


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] float -> 0..255 uint8, rounded, values outside clipped; any shape, to the CPU."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def to_image(pixels: Tensor) -> Image.Image:
    """(C, H, W) uint8, C 1 or 3."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def grid(pixels: Tensor, columns: int | None = None) -> Image.Image:
    """(N, C, H, W) uint8 images side by side, as near to a square as may be."""
    factor = max(1, CELL // pixels.shape[2])
    large = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    columns = columns or math.ceil(len(pixels) ** 0.5)
    rows = math.ceil(len(pixels) / columns)
    cells = F.pad(large, (GAP, 0, GAP, 0, 0, 0, 0, rows * columns - len(pixels)), value=WHITE)
    sheet = rearrange(cells, "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)
    return to_image(F.pad(sheet, (0, GAP, 0, GAP), value=WHITE))


def save_png(image: Image.Image, path: Path) -> None:
    with atomic(path) as partial:
        image.save(partial, format="PNG")


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """A looping film that holds its last frame."""
    each = round(1000 * FILM_SECONDS / len(frames))
    held = [each] * (len(frames) - 1) + [round(1000 * LAST_FRAME_SECONDS)]
    with atomic(path) as partial:
        frames[0].save(partial, format="GIF", save_all=True, append_images=frames[1:], duration=held, loop=0)


def save_loss_plot(steps: Sequence[int], losses: Sequence[float], path: Path) -> None:
    """The loss over the steps; logarithmic, for most of the fall is early."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(which="both", alpha=0.3)
    _save_figure(figure, path)


def save_schedule_plot(alphas_cumprod: Mapping[str, Sequence[float]], path: Path) -> None:
    """alphas_cumprod and log-SNR over t, a line per schedule."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, table in alphas_cumprod.items():
        signal = np.array(table)
        left.plot(signal, label=name)
        right.plot(np.log(signal / (1 - signal)), label=name)
    left.set(xlabel="t", ylabel="alphas_cumprod")
    right.set(xlabel="t", ylabel="log SNR")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    _save_figure(figure, path)


def save_labelled_rows(rows: Mapping[str, Tensor], columns: Sequence[str], path: Path) -> None:
    """A picture table: for each name a row of (N, C, H, W) uint8 images, with a heading per column."""
    count = len(columns)
    figure = Figure(figsize=(1.6 * count + 0.6, 1.6 * len(rows) + 0.3), layout="constrained")
    table = figure.subplots(len(rows), count, squeeze=False)
    for cells, (name, pixels) in zip(table, rows.items(), strict=True):
        cells[0].set_ylabel(name)
        for cell, image in zip(cells, pixels, strict=True):
            cell.imshow(to_image(image), cmap="gray", vmin=0, vmax=255)
            cell.set(xticks=[], yticks=[])
    for cell, heading in zip(table[0], columns, strict=True):
        cell.set_title(heading, fontsize=10)
    _save_figure(figure, path)


def _save_figure(figure: Figure, path: Path) -> None:
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
