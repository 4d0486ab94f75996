from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpm_cli.images import png_gif


def test_to_uint8_rounds_and_clips() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    assert png_gif.to_uint8(x).tolist() == [0, 0, 128, 191, 255, 255]


def test_to_uint8_inverts_scaling() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(png_gif.to_uint8(pixels.float() / 127.5 - 1), pixels)


def test_grid_is_filled_row_by_row() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).mul(60).view(4, 1, 1, 1).expand(4, 1, 56, 56)
    picture = np.asarray(png_gif.grid(pixels))
    assert picture.shape == (2 * 58 + 2, 2 * 58 + 2)  # two rows and columns, gaps of 2
    assert [int(picture[y, x]) for y in (30, 88) for x in (30, 88)] == [0, 60, 120, 180]


def test_small_images_are_enlarged_without_blur() -> None:
    picture = np.asarray(png_gif.grid(torch.tensor([[[[0, 100]]]], dtype=torch.uint8)))
    assert np.unique(picture).tolist() == [0, 100, 255]  # and the white gaps
    assert picture.shape == (png_gif.CELL + 4, 2 * png_gif.CELL + 4)


def test_mode_of_the_grid_follows_the_channels(tmp_path: Path) -> None:
    assert png_gif.grid(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).mode == "RGB"
    assert png_gif.grid(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).mode == "L"


def test_gif_has_all_frames_and_a_longer_last_one(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    png_gif.save_gif(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
        durations = []
        for i in range(3):
            film.seek(i)
            durations.append(film.info["duration"])
        assert film.info["loop"] == 0
        assert np.asarray(film.convert("L"))[0, 0] == 200
    assert durations[2] >= 2000 > durations[0]


def test_labelled_grid_has_a_row_for_each_label() -> None:
    pixels = torch.tensor([40, 80, 120, 160, 200], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 56, 56)
    picture = np.asarray(png_gif.labelled_grid(pixels, ["coat", "bag", "coat", "bag", "coat"]))
    margin = picture.shape[1] - (3 * 58 + 2)  # three columns of 56 and gaps of 2
    assert margin > 20
    assert picture.shape[0] == 2 * 58 + 2
    centres = [[int(picture[y, margin + x]) for x in (30, 88, 146)] for y in (30, 88)]
    assert centres == [[40, 120, 200], [80, 160, 255]]  # the empty cell is white
    assert np.array_equal(picture[2:58, margin + 2 : margin + 58], np.full((56, 56), 40))


def test_labels_are_beside_their_rows() -> None:
    def text(labels: list[str]) -> np.ndarray:
        """Return where a grid of white images is dark: the pixels of the labels."""
        picture = np.asarray(png_gif.labelled_grid(torch.full((3, 1, 56, 56), 255, dtype=torch.uint8), labels))
        return picture < 128

    rows = text(["a", " ", "iii"])
    assert [rows[top : top + 58].any() for top in (0, 58, 116)] == [True, False, True]
    middle = np.flatnonzero(rows[:58].any(axis=1)).mean()
    assert abs(middle - 29) < 8
    assert text(["sneaker"] * 3).shape[1] > text(["bag"] * 3).shape[1]  # the margin fits the longest label
    assert not text(["sneaker"] * 3)[:, 0].any()


def test_labelled_grid_in_colour() -> None:
    pixels = torch.zeros(2, 3, 56, 56, dtype=torch.uint8)
    pixels[:, 0] = 255
    picture = png_gif.labelled_grid(pixels, ["a", "b"])
    assert picture.mode == "RGB"
    assert picture.getpixel((picture.width - 30, 30)) == (255, 0, 0)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
