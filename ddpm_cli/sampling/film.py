"""Which examples and which moments of their denoising a film shows, so that it stays small."""

from ddpm_cli.images.png_gif import CELL

FRAMES = 32
"""Of a film, at most."""
CLOUDS = 16
"""Of a run's film of points, at most: each takes a quarter of a second to draw."""
SHOWN = 16
"""Images that a run's film shows, at most."""
VALUES = 1_700_000
"""Of the pixels of all frames of a run's film, as long as those are more than FEWEST: a megabyte or so of noise."""
FEWEST = 8


def evenly(steps: int, count: int = FRAMES) -> list[int]:
    """At most `count` of 1..steps, evenly spaced, the last among them."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


def shown(shape: tuple[int, ...], count: int) -> int:
    """How many of `count` samples of `shape` a run's film shows: fewer of large images, all points."""
    if len(shape) == 1:
        return count
    return max(1, min(count, SHOWN, VALUES // (FRAMES * _cell(shape))))


def frames(shape: tuple[int, ...]) -> int:
    """How many moments of them: fewer where even one image is large."""
    return CLOUDS if len(shape) == 1 else max(FEWEST, min(FRAMES, VALUES // _cell(shape)))


def _cell(shape: tuple[int, ...]) -> int:
    """Values of an image (C, H, W) in a grid."""
    channels, height, width = shape
    return channels * height * width * max(1, CELL // height) ** 2
