import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.data.image_folder import decode
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from tests.conftest import composed


def load(root: Path, *overrides: str, train: bool = True) -> Examples:
    overrides = ("dataset.test_fraction=0", "dataset.image_size=8", *overrides)
    return load_examples(composed("dataset=image_folder", f"dataset.root={root}", *overrides).dataset, train)


def paint(file: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "PNG", "JpG"])
def test_formats_in_any_letter_case_at_any_depth(tmp_path: Path, suffix: str) -> None:
    paint(tmp_path / "a" / "b" / f"picture.{suffix}")
    images = load(tmp_path)
    assert images.values.shape == (1, 3, 8, 8)
    assert (images.values[0].float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 6


def decoded(tmp_path: Path, image: Image.Image, channels: int = 3, **options: object) -> np.ndarray:
    file = tmp_path / "image.png"
    image.save(file, **options)
    return decode(file, image.height, image.width, channels)


def test_grayscale_becomes_colour_and_back(tmp_path: Path) -> None:
    assert decoded(tmp_path, Image.new("L", (4, 4), 77)).reshape(3, -1).T[0].tolist() == [77, 77, 77]
    gray = decoded(tmp_path, Image.new("RGB", (4, 4), (200, 100, 50)), channels=1)
    assert gray.shape == (1, 4, 4)
    assert gray[0, 0, 0] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1)


def test_palette(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50)).quantize(4)
    assert image.mode == "P"
    assert decoded(tmp_path, image)[:, 0, 0].tolist() == [200, 100, 50]


def test_transparent_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    half = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    assert decoded(tmp_path, clear)[:, 0, 0].tolist() == [255, 255, 255]
    assert decoded(tmp_path, half)[:, 0, 0] == pytest.approx(np.array([227, 177, 152]), abs=1)
    assert decoded(tmp_path, Image.new("LA", (4, 4), (10, 0)), channels=1)[0, 0, 0] == 255


def test_cmyk(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, quality=100)
    assert decode(file, 8, 8, 3)[:, 4, 4] == pytest.approx(np.array([255, 0, 0]), abs=8)


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert deep.mode == "I;16"
    assert decoded(tmp_path, deep, channels=1)[0, 0, 0] in (127, 128)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste((255, 255, 255), (0, 0, 4, 4))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    file = tmp_path / "photo.jpg"
    image.save(file, exif=exif, quality=100)
    upright = decode(file, 8, 4, 1)[0]
    assert upright[:3].min() > 200  # the left becomes the top
    assert upright[5:].max() < 50


def test_first_frame_of_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "film.gif", 4, 4, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_a_transparent_value_of_16_bit_gray_is_white(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[1000, 2000]], dtype=np.uint16))
    assert decoded(tmp_path, deep, channels=1, transparency=1000)[0, 0].tolist() == [255, 7]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8), 70_000).save(tmp_path / "science.tiff")
    with pytest.raises(UserError, match=r"science\.tiff cannot be decoded"):
        load(tmp_path)


def test_resize_covers_and_crops_the_centre(tmp_path: Path) -> None:
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))  # the middle third
    wide.save(tmp_path / "wide.png")
    assert decode(tmp_path / "wide.png", 10, 10, 1).min() == 255
    assert decode(tmp_path / "wide.png", 5, 15, 1).shape == (1, 5, 15)


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name, count in [("dogs", 2), ("cats", 3)]:
        for i in range(count):
            paint(tmp_path / name / "deeper" / f"{i}.png")
    images = load(tmp_path)
    assert images.classes == ["cats", "dogs"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    paint(tmp_path / "loose.png")
    assert load(tmp_path).labels is None


def test_splits_are_apart_and_stay_put(tmp_path: Path) -> None:
    for i in range(60):
        paint(tmp_path / f"{i}.png", (i, 0, 0))

    def reds(train: bool) -> set[int]:
        return set(load(tmp_path, "dataset.test_fraction=0.3", train=train).values[:, 0, 0, 0].tolist())

    train, test = reds(True), reds(False)
    assert train | test == set(range(60))
    assert not train & test
    assert 8 <= len(test) <= 30
    paint(tmp_path / "new.png", (99, 0, 0))
    assert train <= reds(True)
    assert test <= reds(False)


def test_a_class_has_one_number_in_both_splits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(1 if name == "a" else 30):
            paint(tmp_path / name / f"{i}.png")
    train = load(tmp_path, "dataset.test_fraction=0.5")
    test = load(tmp_path, "dataset.test_fraction=0.5", train=False)
    assert train.classes == test.classes == ["a", "b"]
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(torch.cat([train.labels, test.labels]).tolist()) == [0] + [1] * 30


def test_the_cache_tells_folders_apart(tmp_path: Path) -> None:
    for name, value in [("one", 0), ("two", 255)]:
        paint(tmp_path / name / "1.bmp", (value, value, value))
        os.utime(tmp_path / name / "1.bmp", (1e9, 1e9))
    assert load(tmp_path / "one").values.max() == 0
    assert load(tmp_path / "two").values.min() == 255


def test_own_train_and_test_folders(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png", (1, 0, 0))
    paint(tmp_path / "test" / "a" / "2.png", (2, 0, 0))
    assert load(tmp_path).values[:, 0, 0, 0].tolist() == [1]
    assert load(tmp_path, train=False).values[:, 0, 0, 0].tolist() == [2]


def test_decoded_once_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pictures"
    paint(root / "1.png", (10, 0, 0))
    load(root)
    with monkeypatch.context() as patched:
        patched.setattr("ddpm_cli.data.image_folder.decode", None)  # would fail if called
        assert load(root).values[0, 0, 0, 0] == 10
    paint(root / "1.png", (20, 200, 0))
    assert load(root).values[0, 0, 0, 0] == 20


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=rf"dataset.root={tmp_path}: no images"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"dataset.root=/nowhere: no such folder"):
        load(Path("/nowhere"))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_image_is_named_or_skipped_and_counted(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(3):
        paint(tmp_path / f"{i}.png", (i, 0, 0))
    (tmp_path / "1b.png").write_bytes(content)
    with pytest.raises(UserError, match=r"1b\.png cannot be decoded .*skip_broken=true"):
        load(tmp_path)
    images = load(tmp_path, "dataset.skip_broken=true")
    assert images.values[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert "skipped 1 of 4" in caplog.text


def test_a_truncated_photo_is_broken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "photo.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"photo\.jpg cannot be decoded"):
        load(tmp_path)


def test_nothing_but_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 images"):
        load(tmp_path, "dataset.skip_broken=true")
