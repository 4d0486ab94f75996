"""Compress sample grids and films for embedding in a page, as data: URLs of WebP images."""

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
"""Maximum number of grids shown per run, spread evenly over its milestones."""
FRAMES = 24
"""Maximum number of frames shown of a film."""
FILM_SHARE = 3
"""A film gets 1/FILM_SHARE of the bytes of its run, the grids get the rest."""
LARGEST = 800  # pixels a side
SMALLEST = 32
QUALITIES = (82, 60, 30)
SHRINK = (0.6, 0.9)  # range of the scale factor of one step, if the lowest quality is still too large
METHOD = 0  # the fastest of WebP, which needs a fifth more bytes than the default
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 40_000_000  # of a picture
MAX_FILM_PIXELS = 2_000_000_000  # of all frames
MAX_FRAMES = 2000

BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Exceptions that Pillow raises for invalid images."""


def small_grids(grids: dict[int, Path], max_bytes: int) -> dict[int, str]:
    """Return some of `grids` by step, compressed to `max_bytes` in total. Unreadable ones are left out."""
    steps = evenly(list(grids), MILESTONES)
    small = {step: _small_grid(grids[step], max_bytes // len(steps)) for step in steps}
    return {step: picture for step, picture in small.items() if picture}


def small_film(path: Path, max_bytes: int) -> tuple[str, str] | None:
    """Return a film and its last frame, compressed to `max_bytes` in total, or None if it cannot be read."""
    content = content_of(path, MAX_BYTES)
    if content is None:
        return None
    try:
        with _opened(content, "GIF") as film:
            frames, durations = _frames(film)
    except BROKEN as error:
        log.warning("%s: left out, because it is not a valid film (%s)", path, error)
        return None
    still = _within(max_bytes // FRAMES, frames[-1:], _encode)
    moving = _within(max_bytes - len(still), frames, lambda small, quality: _encode_film(small, durations, quality))
    return _data_url(moving), _data_url(still)


def evenly(items: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of `items`, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _small_grid(path: Path, max_bytes: int) -> str:
    content = content_of(path, MAX_BYTES)
    if content is None:
        return ""
    try:
        with _opened(content, "PNG") as picture:
            image = picture.convert("RGB")
    except BROKEN as error:
        log.warning("%s: left out, because it is not a valid picture (%s)", path, error)
        return ""
    return _data_url(_within(max_bytes, [image], _encode))


def _opened(content: bytes, kind: str) -> Image.Image:
    """Open an image without decoding it. Raises one of `BROKEN` if its format is not `kind` or if it is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(content), formats=[kind])
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} pixels")
    return picture


def _frames(film: Image.Image) -> tuple[list[Image.Image], list[int]]:
    """Return the frames to show and the duration of each in ms."""
    count = getattr(film, "n_frames", 1)
    if count > MAX_FRAMES or count * film.width * film.height > MAX_FILM_PIXELS:
        raise ValueError(f"{count} frames of {film.width}x{film.height} pixels")
    kept = evenly(range(count), FRAMES)
    frames: list[Image.Image] = []
    durations: list[int] = []
    for i, frame in enumerate(ImageSequence.Iterator(film)):
        duration = int(frame.info.get("duration", 100))
        if i in kept:
            frames.append(_no_larger(frame.convert("RGB")))
            durations.append(duration)
        else:
            durations[-1] += duration
    return frames, durations


def _within(
    max_bytes: int, frames: Sequence[Image.Image], encode: Callable[[Sequence[Image.Image], int], bytes]
) -> bytes:
    """Encode `frames` in `max_bytes`: first with lower quality, then also with smaller frames."""
    frames = shrunk = [_no_larger(frame) for frame in frames]
    small = b""
    for quality in QUALITIES:
        small = encode(frames, quality)
        if len(small) <= max_bytes:
            return small
    while len(small) > max_bytes and max(shrunk[0].size) > SMALLEST:
        scale = min(max(math.sqrt(max_bytes / len(small)), SHRINK[0]), SHRINK[1])
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


def _data_url(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
