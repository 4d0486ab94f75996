"""Selection of the frames of a film and of the samples that it shows."""

import pytest

from ddpm_cli.sampling.film import FRAMES, MIN_FRAMES, SHOWN, VALUES, evenly, frames, shown


def test_frames_are_evenly_spaced_and_include_the_last_step() -> None:
    assert evenly(3) == [1, 2, 3]
    assert evenly(64) == list(range(2, 65, 2))
    assert evenly(1000, 4) == [250, 500, 750, 1000]
    assert len(evenly(1000)) == FRAMES


@pytest.mark.parametrize(
    ("shape", "samples", "frame_count"),
    [((1, 8, 8), 16, 32), ((1, 28, 28), 16, 32), ((3, 32, 32), 16, 32), ((3, 64, 64), 4, 32), ((3, 512, 512), 1, 8)],
)
def test_films_of_large_images_have_fewer_frames(shape: tuple[int, ...], samples: int, frame_count: int) -> None:
    assert (shown(shape, 64), frames(shape)) == (samples, frame_count)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 20, 28, 32, 48, 64, 100, 128, 256, 512])
def test_film_size_is_limited(channels: int, side: int) -> None:
    """Check the size limit. It does not apply to the smallest number of frames of one image."""
    factor = max(1, 56 // side)
    cell = channels * (side * factor) ** 2
    total = cell * shown((channels, side, side), 64) * frames((channels, side, side))
    assert total <= max(VALUES, MIN_FRAMES * cell)


def test_few_samples_are_all_shown() -> None:
    assert shown((1, 8, 8), 3) == 3
    assert shown((1, 8, 8), 100) == SHOWN
    assert shown((2,), 5000) == 5000
