"""Emoji as colour images, drawn from a font: small, in nine classes, and installed by Debian's packages."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

from ddpm_cli.config import Emoji
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from ddpm_cli.files import atomic

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Font of Debian's package fonts-noto-color-emoji."""
LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
"""List of Debian's package unicode-data."""
POINTS = 109
"""The only size of the bitmaps in the font."""
SIDE = 136
"""Width of a glyph in pixels; glyphs are 128 pixels high."""
PER_TEST = 10
"""One in so many emoji is in the test split."""
GROUP = "# group: "
EMOJI = re.compile(r"([0-9A-F ]+); fully-qualified")


def read_emoji(dataset: Emoji, train: bool, cache: Path) -> Examples:
    """Return the fully-qualified emoji of the list, drawn on white, with their groups as classes.

    Every tenth one, by a hash of its characters, is in the test split. The drawn images are kept in `cache`. Raise
    `UserError` if the font or the list is missing or unusable.
    """
    font, listed = Path(dataset.font or FONT).expanduser(), Path(dataset.list or LIST).expanduser()
    texts, groups = _read_list(listed)
    classes = list(dict.fromkeys(groups))
    pixels = _load_or_draw(dataset, font, texts, cache)
    chosen = [i for i, text in enumerate(texts) if (_hash(text) % PER_TEST > 0) == train]
    labels = torch.tensor([classes.index(groups[i]) for i in chosen])
    found = {groups[i] for i in chosen}
    held_out = [name for name in classes if name not in found] if train else []
    return Examples(torch.from_numpy(pixels[chosen]), labels, classes, str(font), held_out=held_out)


def _read_list(path: Path) -> tuple[list[str], list[str]]:
    """Return the emoji in a file like emoji-test.txt, and the group of each, such as `food_drink`."""
    texts, groups, group = [], [], ""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"dataset.list={path}: {_missing(error)} unicode-data has one") from error
    for line in lines:
        if line.startswith(GROUP):
            group = re.sub(r"\W+", "_", line.removeprefix(GROUP).strip().lower())
        elif (found := EMOJI.match(line)) is not None:
            texts.append("".join(chr(int(code, 16)) for code in found[1].split()))
            groups.append(group)
    if not texts:
        raise UserError(f"dataset.list={path}: has no fully-qualified emoji; name a file like Unicode's emoji-test.txt")
    return texts, groups


def _load_or_draw(dataset: Emoji, font: Path, texts: Sequence[str], cache: Path) -> np.ndarray:
    """Return all emoji as (N, C, H, W) uint8, from the cache if they have been drawn before."""
    try:
        content = hashlib.sha256(font.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"dataset.font={font}: {_missing(error)} fonts-noto-color-emoji has one") from error
    content.update(repr((dataset.shape, *texts)).encode())
    file = cache / f"{content.hexdigest()[:32]}.npy"
    if file.is_file():
        return np.asarray(np.load(file, mmap_mode="r"))
    pixels = _draw_all(font, texts, dataset.shape)
    cache.mkdir(parents=True, exist_ok=True)
    with atomic(file, pixels.nbytes) as partial, partial.open("wb") as stream:
        np.save(stream, pixels)
    return pixels


def _draw_all(font: Path, texts: Sequence[str], shape: tuple[int, int, int]) -> np.ndarray:
    if not features.check("raqm"):
        raise UserError("dataset=emoji: this Pillow was built without Raqm, which draws emoji of several characters")
    try:
        opened = ImageFont.truetype(str(font), POINTS)
    except OSError as error:
        raise UserError(f"dataset.font={font}: has no bitmaps of {POINTS} points, as Noto Color Emoji has") from error
    return np.stack([draw_emoji(text, opened, shape) for text in texts])


def draw_emoji(text: str, font: ImageFont.FreeTypeFont, shape: tuple[int, int, int]) -> np.ndarray:
    """Return an emoji on white as uint8 of `shape` (C, H, W)."""
    channels, height, width = shape
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).text((SIDE // 2, SIDE // 2), text, font=font, embedded_color=True, anchor="mm")
    small = image.resize((width, height), Image.Resampling.LANCZOS).convert("L" if channels == 1 else "RGB")
    return np.asarray(small).reshape(height, width, channels).transpose(2, 0, 1)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _missing(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else error
    return f"cannot be read ({reason}); name a file, or on Debian: apt-get install fonts-noto-color-emoji unicode-data;"
