"""Convert images in [-1, 1] to grids, PNG files and GIF files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm_cli.files import write

CELL = 56
"""Size in pixels up to which small images are enlarged in grids, by an integer factor."""
GAP = 2
"""Pixels between the images of a grid."""
WHITE, BLACK = 255, 0
FONT_SIZE = 14
MAX_LABEL_LENGTH = 30
"""Maximum number of characters of a label in a grid."""
FILM_SECONDS = 4.0
LAST_FRAME_SECONDS = 2.0


def to_uint8(x: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8 on the CPU, rounded and clipped to 0..255. Keep uint8 as it is."""
    if x.dtype == torch.uint8:
        return x.cpu()
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def to_image(pixels: Tensor) -> Image.Image:
    """Convert a tensor (C, H, W) of uint8 with C = 1 or 3 to a PIL image."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def grid(pixels: Tensor, columns: int | None = None) -> Image.Image:
    """Return a grid of images (N, C, H, W) uint8, in rows from left to right.

    columns: by default, the number that makes the grid approximately square.
    """
    factor = max(1, CELL // pixels.shape[2])
    large = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    columns = columns or math.ceil(len(pixels) ** 0.5)
    rows = math.ceil(len(pixels) / columns)
    cells = F.pad(large, (GAP, 0, GAP, 0, 0, 0, 0, rows * columns - len(pixels)), value=WHITE)
    sheet = rearrange(cells, "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)
    return to_image(F.pad(sheet, (0, GAP, 0, GAP), value=WHITE))


def labelled_grid(pixels: Tensor, labels: Sequence[str]) -> Image.Image:
    """Return a grid of images (N, C, H, W) uint8 with a row for each distinct label, in order of first appearance.

    labels: the label of each image. The rows have their labels as headings.
    """
    names = list(dict.fromkeys(labels))
    shown = [_printable_label(name) for name in names]
    columns = max(labels.count(name) for name in names)
    rows = []
    for name in names:
        row = pixels[[i for i, label in enumerate(labels) if label == name]]
        rows.append(F.pad(row, (0, 0, 0, 0, 0, 0, 0, columns - len(row)), value=WHITE))
    images = grid(torch.cat(rows), columns)
    font = ImageFont.load_default(FONT_SIZE)
    margin = 2 * FONT_SIZE + math.ceil(max(font.getlength(name) for name in shown))
    sheet = Image.new(images.mode, (margin + images.width, images.height), WHITE if images.mode == "L" else "white")
    sheet.paste(images, (margin, 0))
    draw = ImageDraw.Draw(sheet)
    height = images.height / len(names)
    for i, name in enumerate(shown):
        draw.text((margin - FONT_SIZE, (i + 0.5) * height), name, fill=BLACK, font=font, anchor="rm")
    return sheet


def _printable_label(name: str) -> str:
    """Return `name` as a short line of printable characters. Classes from folders may have any name."""
    line = "".join(letter if letter.isprintable() else "?" for letter in name)
    return line if len(line) <= MAX_LABEL_LENGTH else line[: MAX_LABEL_LENGTH - 1] + "…"


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` to `path` as PNG, atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write(path, buffer.getvalue())


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animation of FILM_SECONDS that repeats and shows its last frame for LAST_FRAME_SECONDS."""
    milliseconds = round(1000 * FILM_SECONDS / len(frames))
    durations = [milliseconds] * (len(frames) - 1) + [round(1000 * LAST_FRAME_SECONDS)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    write(path, buffer.getvalue())
