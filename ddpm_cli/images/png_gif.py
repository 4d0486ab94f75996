"""Convert tensors in [-1, 1] to PNGs, grids and GIFs."""

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

CELL = 56  # pixels: smaller images are enlarged in grids by whole factors
GAP = 2
WHITE, BLACK = 255, 0
FONT_SIZE = 14
LONGEST_LABEL = 30  # letters
FILM_SECONDS = 4.0
LAST_FRAME_SECONDS = 2.0


def to_uint8(x: Tensor) -> Tensor:
    """Return [-1, 1] floats of any shape as 0..255 uint8 on the CPU, rounded and clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def to_image(pixels: Tensor) -> Image.Image:
    """Return a (C, H, W) uint8 tensor with C = 1 or 3 as a PIL image."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def grid(pixels: Tensor, columns: int | None = None) -> Image.Image:
    """Return a nearly square grid of (N, C, H, W) uint8 images."""
    factor = max(1, CELL // pixels.shape[2])
    large = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    columns = columns or math.ceil(len(pixels) ** 0.5)
    rows = math.ceil(len(pixels) / columns)
    cells = F.pad(large, (GAP, 0, GAP, 0, 0, 0, 0, rows * columns - len(pixels)), value=WHITE)
    sheet = rearrange(cells, "(rows columns) c h w -> c (rows h) (columns w)", columns=columns)
    return to_image(F.pad(sheet, (0, GAP, 0, GAP), value=WHITE))


def labelled_grid(pixels: Tensor, labels: Sequence[str]) -> Image.Image:
    """Return a grid of (N, C, H, W) uint8 images with a named row for each label, in order of appearance."""
    names = list(dict.fromkeys(labels))
    shown = [_drawable(name) for name in names]
    columns = max(labels.count(name) for name in names)
    rows = []
    for name in names:
        own = pixels[[i for i, label in enumerate(labels) if label == name]]
        rows.append(F.pad(own, (0, 0, 0, 0, 0, 0, 0, columns - len(own)), value=WHITE))
    images = grid(torch.cat(rows), columns)
    font = ImageFont.load_default(FONT_SIZE)
    margin = 2 * FONT_SIZE + math.ceil(max(font.getlength(name) for name in shown))
    sheet = Image.new(images.mode, (margin + images.width, images.height), WHITE if images.mode == "L" else "white")
    sheet.paste(images, (margin, 0))
    draw = ImageDraw.Draw(sheet)
    height = images.height / len(names)
    for row, name in enumerate(shown):
        draw.text((margin - FONT_SIZE, (row + 0.5) * height), name, fill=BLACK, font=font, anchor="rm")
    return sheet


def _drawable(name: str) -> str:
    """Return a class name that can be drawn on one line, since folders may have any name."""
    line = "".join(letter if letter.isprintable() else "?" for letter in name)
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write(path, buffer.getvalue())


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write a looping GIF that holds its last frame."""
    each = round(1000 * FILM_SECONDS / len(frames))
    held = [each] * (len(frames) - 1) + [round(1000 * LAST_FRAME_SECONDS)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=held, loop=0)
    write(path, buffer.getvalue())
