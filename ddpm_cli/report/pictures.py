"""Compress sample grids and films to WebP and encode them as data: URLs for the report page."""

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
"""Maximum number of grids per run. They are evenly spaced over its milestones."""
FILM_FRAMES = 24
"""Maximum number of frames per film."""
FILM_SHARE = 3
"""A film gets 1/FILM_SHARE of the picture bytes of its run. The grids get the rest."""
MAX_SIDE = 800  # pixels
MIN_SIDE = 32
QUALITIES = (82, 60, 30)
SHRINK = (0.6, 0.9)  # range of the scale factor per step, used if the lowest quality is still too large
METHOD = 0  # fastest WebP method; files are about 20 % larger than with the default
MAX_FILE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 40_000_000  # per image or frame
MAX_FILM_PIXELS = 2_000_000_000  # in all frames together
MAX_FILM_FRAMES = 2000

INVALID_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Exceptions raised by Pillow for invalid images."""


def small_grids(grids: dict[int, Path], max_bytes: int) -> dict[int, str]:
    """Return up to `MILESTONES` grids by step, compressed to `max_bytes` in total. Unreadable grids are skipped."""
    steps = pick_evenly_spaced(list(grids), MILESTONES)
    small = {step: _small_grid(grids[step], max_bytes // len(steps)) for step in steps}
    return {step: picture for step, picture in small.items() if picture}


def small_film(path: Path, max_bytes: int) -> tuple[str, str] | None:
    """Return a film and its last frame, compressed to `max_bytes` in total, or None if the film is unreadable."""
    content = content_of(path, MAX_FILE_BYTES)
    if content is None:
        return None
    try:
        with _open_image(content, "GIF") as film:
            frames, durations = _frames_and_durations(film)
    except INVALID_IMAGE_ERRORS as error:
        log.warning("%s: skipped because it is not a valid GIF (%s)", path, error)
        return None
    still = _compress(max_bytes // FILM_FRAMES, frames[-1:], _encode_image)
    moving = _compress(max_bytes - len(still), frames, lambda small, quality: _encode_film(small, durations, quality))
    return _data_url(moving), _data_url(still)


def pick_evenly_spaced(items: Sequence[int], max_count: int) -> list[int]:
    """Return at most `max_count` evenly spaced items, including the first and the last."""
    if len(items) <= max_count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (max_count - 1))] for i in range(max_count)]


def _small_grid(path: Path, max_bytes: int) -> str:
    content = content_of(path, MAX_FILE_BYTES)
    if content is None:
        return ""
    try:
        with _open_image(content, "PNG") as picture:
            image = picture.convert("RGB")
    except INVALID_IMAGE_ERRORS as error:
        log.warning("%s: skipped because it is not a valid PNG (%s)", path, error)
        return ""
    return _data_url(_compress(max_bytes, [image], _encode_image))


def _open_image(content: bytes, file_format: str) -> Image.Image:
    """Open an image without decoding it. Raise an exception if it is too large or has another file format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(content), formats=[file_format])
    if picture.width * picture.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} pixels")
    return picture


def _frames_and_durations(film: Image.Image) -> tuple[list[Image.Image], list[int]]:
    """Return up to `FILM_FRAMES` frames and their durations in ms. Each also lasts for the skipped frames after it."""
    count = getattr(film, "n_frames", 1)
    if count > MAX_FILM_FRAMES or count * film.width * film.height > MAX_FILM_PIXELS:
        raise ValueError(f"{count} frames of {film.width}x{film.height} pixels")
    kept = pick_evenly_spaced(range(count), FILM_FRAMES)
    frames: list[Image.Image] = []
    durations: list[int] = []
    for i, frame in enumerate(ImageSequence.Iterator(film)):
        duration = int(frame.info.get("duration", 100))
        if i in kept:
            frames.append(_shrink_to_max_side(frame.convert("RGB")))
            durations.append(duration)
        else:
            durations[-1] += duration
    return frames, durations


def _compress(
    max_bytes: int, frames: Sequence[Image.Image], encode: Callable[[Sequence[Image.Image], int], bytes]
) -> bytes:
    """Encode `frames` in at most `max_bytes`. Reduce the quality first, then the size of the frames."""
    frames = shrunk = [_shrink_to_max_side(frame) for frame in frames]
    small = b""
    for quality in QUALITIES:
        small = encode(frames, quality)
        if len(small) <= max_bytes:
            return small
    while len(small) > max_bytes and max(shrunk[0].size) > MIN_SIDE:
        scale = min(max(math.sqrt(max_bytes / len(small)), SHRINK[0]), SHRINK[1])
        size = (max(1, round(shrunk[0].width * scale)), max(1, round(shrunk[0].height * scale)))
        shrunk = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
        small = encode(shrunk, QUALITIES[-1])
    return small


def _shrink_to_max_side(frame: Image.Image) -> Image.Image:
    frame = frame.copy()
    frame.thumbnail((MAX_SIDE, MAX_SIDE))
    return frame


def _encode_image(frames: Sequence[Image.Image], quality: int) -> bytes:
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
