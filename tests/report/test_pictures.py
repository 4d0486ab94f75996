"""Tests of compressing grids and films: number, size and content."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.report import pictures
from ddpm_cli.report.pictures import pick_evenly_spaced, small_film, small_grids
from tests.report.folders import paint, paint_film


def open_data_url(address: str) -> Image.Image:
    head, content = address.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)), formats=["WEBP"])


def size_of(address: str) -> int:
    return len(base64.b64decode(address.split(",")[1]))


def test_pick_evenly_spaced() -> None:
    assert pick_evenly_spaced(range(5), 10) == [0, 1, 2, 3, 4]
    assert pick_evenly_spaced(range(1, 101), 10) == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100]


def test_grids_keep_size_and_content(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64)[None, :].repeat(48, axis=0)
    paint(tmp_path / "step_1.png", smooth)
    image = open_data_url(small_grids({1: tmp_path / "step_1.png"}, 10_000)[1])
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image.convert("L")).astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("max_bytes", [4_000, 40_000])
def test_grids_of_noise_stay_within_the_limit(tmp_path: Path, max_bytes: int) -> None:
    rng = np.random.default_rng(0)
    grids = {}
    for step in range(3):
        grids[step] = tmp_path / f"{step}.png"
        paint(grids[step], rng.integers(0, 256, (464, 464, 3)))
    small = small_grids(grids, max_bytes)
    assert list(small) == [0, 1, 2]
    assert max_bytes / 6 < sum(map(size_of, small.values())) <= max_bytes  # uses a large part of the limit


def test_number_of_grids_is_limited(tmp_path: Path) -> None:
    paint(tmp_path / "grid.png", np.zeros((8, 8)))
    small = small_grids(dict.fromkeys(range(100), tmp_path / "grid.png"), 10_000)
    assert list(small)[::9] == [0, 99]
    assert len(small) == 10


def test_film_keeps_duration_and_last_frame(tmp_path: Path) -> None:
    paint_film(tmp_path / "film.gif", [np.full((40, 40), 5 * i) for i in range(50)])
    film = small_film(tmp_path / "film.gif", 100_000)
    assert film is not None
    moving, still = map(open_data_url, film)
    durations = []
    for i in range(moving.n_frames):
        moving.seek(i)
        moving.load()
        durations.append(moving.info["duration"])
    assert len(durations) == 24
    assert sum(durations) == 50 * 100
    assert np.abs(np.asarray(moving.convert("L")).astype(int) - 245).max() < 6
    assert np.abs(np.asarray(still.convert("L")).astype(int) - 245).max() < 6


def test_film_of_noise_stays_within_the_limit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paint_film(tmp_path / "film.gif", [rng.integers(0, 256, (200, 200)) for _ in range(30)])
    film = small_film(tmp_path / "film.gif", 60_000)
    assert film is not None
    assert sum(map(size_of, film)) <= 60_000


def test_invalid_pictures_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "valid.png", np.random.default_rng(0).integers(0, 256, (64, 64)))
    (tmp_path / "truncated.png").write_bytes((tmp_path / "valid.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("hello")
    Image.new("L", (8, 8)).save(tmp_path / "gif.png", format="GIF")
    names = ["truncated", "text", "gif", "valid"]
    small = small_grids({i: tmp_path / f"{name}.png" for i, name in enumerate(names)}, 100_000)
    assert list(small) == [3]
    for name in names[:3]:
        assert f"{name}.png: skipped" in caplog.text
    (tmp_path / "film.gif").write_bytes(b"GIF89a invalid")
    assert small_film(tmp_path / "film.gif", 1000) is None
    assert small_film(tmp_path / "missing.gif", 1000) is None
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    assert small_grids({3: tmp_path / "valid.png"}, 100_000) == {}
    assert "64x64 pixels" in caplog.text
