from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpm_cli import imaging


def test_to_uint8_rounds_and_clips() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    assert imaging.to_uint8(x).tolist() == [0, 0, 128, 191, 255, 255]


def test_every_pixel_value_survives_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(imaging.to_uint8(pixels.float() / 127.5 - 1), pixels)


def test_grid_holds_each_image_in_reading_order() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).mul(60).view(4, 1, 1, 1).expand(4, 1, 56, 56)
    picture = np.asarray(imaging.grid(pixels))
    assert picture.shape == (2 * 58 + 2, 2 * 58 + 2)  # two rows and columns, gaps of 2
    assert [int(picture[y, x]) for y in (30, 88) for x in (30, 88)] == [0, 60, 120, 180]


def test_small_images_are_enlarged_without_blur() -> None:
    picture = np.asarray(imaging.grid(torch.tensor([[[[0, 100]]]], dtype=torch.uint8)))
    assert np.unique(picture).tolist() == [0, 100, 255]  # and the white gaps
    assert picture.shape == (imaging.CELL + 4, 2 * imaging.CELL + 4)


def test_colour_and_gray(tmp_path: Path) -> None:
    assert imaging.grid(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).mode == "RGB"
    assert imaging.grid(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).mode == "L"


def test_gif_shows_every_frame_and_holds_the_last(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    imaging.save_gif(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
        durations = []
        for i in range(3):
            film.seek(i)
            durations.append(film.info["duration"])
        assert film.info["loop"] == 0
        assert np.asarray(film.convert("L"))[0, 0] == 200
    assert durations[2] >= 2000 > durations[0]
