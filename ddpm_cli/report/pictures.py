"""Grids and films made small enough to stand in a page: WebP, as data: addresses."""

import base64
import io
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageSequence

from ddpm_cli.untrusted_files import content_of

log = logging.getLogger(__name__)

MILESTONES = 10
"""Grids of a run that are shown at most, evenly taken."""
FRAMES = 24
"""Frames of a film that are, at most."""
FILM_SHARE = 3
"""A film takes this part of its run's bytes, the grids the others."""
LARGEST = 800  # pixels a side
SMALLEST = 32
QUALITIES = (82, 60, 30)
SHRINK = (0.6, 0.9)  # at a time, where the worst quality is still too large: no more, no less than
METHOD = 0  # the fastest of WebP's, which costs a fifth more bytes than the usual one
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 40_000_000  # of a picture
MAX_FILM_PIXELS = 2_000_000_000  # of all frames
MAX_FRAMES = 2000

BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises on pictures that are none."""


def small_grids(grids: dict[int, Path], most: int) -> dict[int, str]:
    """By step, some of `grids` in `most` bytes together; less those that cannot be read."""
    steps = evenly(list(grids), MILESTONES)
    small = {step: _small_grid(grids[step], most // len(steps)) for step in steps}
    return {step: picture for step, picture in small.items() if picture}


def small_film(path: Path, most: int) -> tuple[str, str] | None:
    """A film and its last frame, in `most` bytes together, or None where it cannot be read."""
    content = content_of(path, MAX_BYTES)
    if content is None:
        return None
    try:
        with _opened(content, "GIF") as film:
            frames, durations = _frames(film)
    except BROKEN as error:
        log.warning("%s: left out, for it is no film that can be shown (%s)", path, error)
        return None
    still = _within(most // FRAMES, frames[-1:], _encode)
    moving = _within(most - len(still), frames, lambda small, quality: _encode_film(small, durations, quality))
    return _address(moving), _address(still)


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of `items`, the last and, but for a single one, the first among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _small_grid(path: Path, most: int) -> str:
    content = content_of(path, MAX_BYTES)
    if content is None:
        return ""
    try:
        with _opened(content, "PNG") as picture:
            image = picture.convert("RGB")
    except BROKEN as error:
        log.warning("%s: left out, for it is no picture that can be shown (%s)", path, error)
        return ""
    return _address(_within(most, [image], _encode))


def _opened(content: bytes, kind: str) -> Image.Image:
    """Pillow's picture, not decoded yet. Raises one of `BROKEN` where it is not of `kind`, or too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(content), formats=[kind])
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} pixels")
    return picture


def _frames(film: Image.Image) -> tuple[list[Image.Image], list[int]]:
    """Some of the frames, and how long each is to be seen, in ms."""
    count = getattr(film, "n_frames", 1)
    if count > MAX_FRAMES or count * film.width * film.height > MAX_FILM_PIXELS:
        raise ValueError(f"{count} frames of {film.width}x{film.height} pixels")
    kept = evenly(range(count), FRAMES)
    frames: list[Image.Image] = []
    durations: list[int] = []
    for i, frame in enumerate(ImageSequence.Iterator(film)):
        lasts = int(frame.info.get("duration", 100))
        if i in kept:
            frames.append(_no_larger(frame.convert("RGB")))
            durations.append(lasts)
        else:
            durations[-1] += lasts
    return frames, durations


def _within(most: int, frames: Sequence[Image.Image], encode: Callable[[Sequence[Image.Image], int], bytes]) -> bytes:
    """What `encode` makes of `frames` in `most` bytes: by worse qualities first, then of smaller ones."""
    frames = shrunk = [_no_larger(frame) for frame in frames]
    small = b""
    for quality in QUALITIES:
        small = encode(frames, quality)
        if len(small) <= most:
            return small
    while len(small) > most and max(shrunk[0].size) > SMALLEST:
        scale = min(max(math.sqrt(most / len(small)), SHRINK[0]), SHRINK[1])
        size = (max(1, round(shrunk[0].width * scale)), max(1, round(shrunk[0].height * scale)))
        shrunk = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
        small = encode(shrunk, QUALITIES[-1])
    return small


def _no_larger(frame: Image.Image) -> Image.Image:
    frame = frame.copy()
    frame.thumbnail((LARGEST, LARGEST))
    return frame


def _encode(frames: Sequence[Image.Image], quality: int) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, format="WEBP", quality=quality, method=METHOD)
    return buffer.getvalue()


def _encode_film(frames: Sequence[Image.Image], durations: Sequence[int], quality: int) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=list(durations),
        loop=0,
        quality=quality,
        method=METHOD,
    )
    return buffer.getvalue()


def _address(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
