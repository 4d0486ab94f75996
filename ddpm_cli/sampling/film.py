"""Choose the samples and steps that a film shows, so that the file stays small."""

from ddpm_cli.images.png_gif import CELL

FRAMES = 32
"""Largest number of frames of a film."""
CLOUDS = 16
"""Largest number of frames of a film of points, each of which takes a quarter of a second to draw."""
SHOWN = 16
"""Largest number of samples in the film of a run."""
VALUES = 1_700_000
"""Largest number of pixel values in the film of a run (about 1 MB), unless MIN_FRAMES frames need more."""
MIN_FRAMES = 8


def evenly(steps: int, count: int = FRAMES) -> list[int]:
    """Return at most `count` of 1..steps, evenly spaced and including the last."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


def shown(shape: tuple[int, ...], count: int) -> int:
    """Return how many of `count` samples of `shape` the film of a run shows: fewer large images, all points."""
    if len(shape) == 1:
        return count
    return max(1, min(count, SHOWN, VALUES // (FRAMES * _cell(shape))))


def frames(shape: tuple[int, ...]) -> int:
    """Return the number of frames: fewer for large images."""
    return CLOUDS if len(shape) == 1 else max(MIN_FRAMES, min(FRAMES, VALUES // _cell(shape)))


def _cell(shape: tuple[int, ...]) -> int:
    """Return the number of values of an image (C, H, W) in a grid."""
    channels, height, width = shape
    return channels * height * width * max(1, CELL // height) ** 2
