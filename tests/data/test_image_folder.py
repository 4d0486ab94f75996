import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.data.decoding import _to_8_bit_opaque, decode_image
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from tests.conftest import TINY, Result, composed, train_into

Run = Callable[..., Result]


def load(root: Path, *overrides: str, train: bool = True) -> Examples:
    overrides = ("dataset.test_fraction=0", "dataset.image_size=8", *overrides)
    return load_examples(composed("dataset=image_folder", f"dataset.root={root}", *overrides).dataset, train)


def save_image(file: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "PNG", "JpG"])
def test_file_formats(tmp_path: Path, suffix: str) -> None:
    save_image(tmp_path / "a" / "b" / f"picture.{suffix}")
    images = load(tmp_path)
    assert images.values.shape == (1, 3, 8, 8)
    assert (images.values[0].float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 6


def save_and_decode(tmp_path: Path, image: Image.Image, channels: int = 3, **options: object) -> np.ndarray:
    file = tmp_path / "image.png"
    image.save(file, **options)
    return decode_image(file, image.height, image.width, channels)


def test_conversion_between_gray_and_rgb(tmp_path: Path) -> None:
    assert save_and_decode(tmp_path, Image.new("L", (4, 4), 77)).reshape(3, -1).T[0].tolist() == [77, 77, 77]
    gray = save_and_decode(tmp_path, Image.new("RGB", (4, 4), (200, 100, 50)), channels=1)
    assert gray.shape == (1, 4, 4)
    assert gray[0, 0, 0] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1)


def test_palette_image(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50)).quantize(4)
    assert image.mode == "P"
    assert save_and_decode(tmp_path, image)[:, 0, 0].tolist() == [200, 100, 50]


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    half = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    assert save_and_decode(tmp_path, clear)[:, 0, 0].tolist() == [255, 255, 255]
    assert save_and_decode(tmp_path, half)[:, 0, 0] == pytest.approx(np.array([227, 177, 152]), abs=1)
    assert save_and_decode(tmp_path, Image.new("LA", (4, 4), (10, 0)), channels=1)[0, 0, 0] == 255


def test_cmyk_image(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, quality=100)
    assert decode_image(file, 8, 8, 3)[:, 4, 4] == pytest.approx(np.array([255, 0, 0]), abs=8)


RAMP = np.arange(65536).reshape(256, 256)


def save_deep(path: Path, mode: str, levels: np.ndarray, **options: object) -> Path:
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    size = levels.shape[1], levels.shape[0]
    Image.frombytes(mode, size, levels.astype(kinds[mode]).tobytes()).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "ending"), [("I;16", "png"), ("I;16", "tiff"), ("I;16B", "png"), ("I;16B", "tiff"), ("I", "tiff")]
)
def test_16_bit_gray_is_rounded(tmp_path: Path, mode: str, ending: str) -> None:
    image = decode_image(save_deep(tmp_path / f"ramp.{ending}", mode, RAMP), 256, 256, 1)
    assert image.mean() == 127.5  # 127.0 if it were floored
    assert np.abs(image[0] - RAMP / 257).max() <= 0.5


def test_float_gray_is_rounded(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 256 * 16, dtype=np.float32).reshape(16, 256)
    Image.fromarray(levels).save(tmp_path / "ramp.tiff")
    assert np.abs(decode_image(tmp_path / "ramp.tiff", 16, 256, 1)[0] - 255 * levels).max() <= 0.5


COLOURS = Image.merge("RGB", [Image.new("L", (8, 8), level) for level in (200, 100, 50)])


@pytest.mark.parametrize("mode", ["YCbCr", "PA", "LA", "RGBX", "RGBA", "CMYK", "P", "L", "1"])
def test_modes_of_tiff_are_read(tmp_path: Path, mode: str) -> None:
    """Compare with the conversion by Pillow before the file is written."""
    image = COLOURS.quantize(4).convert("PA") if mode == "PA" else COLOURS.convert(mode)
    image.save(tmp_path / "image.tiff")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)
    assert np.abs(decode_image(tmp_path / "image.tiff", 8, 8, 3) - expected).max() <= 1


@pytest.mark.parametrize(("mode", "opaque"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_colours_are_divided(mode: str, opaque: str) -> None:
    image = Image.new(opaque, (1, 1), (100, 128) if mode == "La" else (100, 50, 0, 128))
    blended = np.asarray(_to_8_bit_opaque(image.convert(mode)).convert("RGB"))
    assert np.abs(blended - np.asarray(_to_8_bit_opaque(image).convert("RGB")).astype(int)).max() <= 2


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste((255, 255, 255), (0, 0, 4, 4))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    file = tmp_path / "photo.jpg"
    image.save(file, exif=exif, quality=100)
    upright = decode_image(file, 8, 4, 1)[0]
    assert upright[:3].min() > 200  # the left becomes the top
    assert upright[5:].max() < 50


def test_gif_is_read_as_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "film.gif", 4, 4, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_transparent_value_of_16_bit_gray_is_white(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[1000, 2000]], dtype=np.uint16))
    assert save_and_decode(tmp_path, deep, channels=1, transparency=1000)[0, 0].tolist() == [255, 8]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (8, 8), 70_000), r"floating-point pixels outside \[0, 1\]; save it with 8 or 16 bits"),
        (Image.new("F", (8, 8), float("nan")), "floating-point pixels outside"),
        (Image.new("I", (8, 8), 70_000), "more than 16 bits per channel; save it with 8 or 16"),
        (Image.merge("LAB", COLOURS.split()), "pixels in LAB, which have no colour profile here; save it as RGB"),
    ],
    ids=["large floats", "nan", "32 bits", "LAB"],
)
def test_pixels_of_unknown_range_are_rejected(tmp_path: Path, image: Image.Image, reason: str) -> None:
    image.save(tmp_path / "science.tiff")
    with pytest.raises(UserError, match=rf"science\.tiff cannot be decoded \(ValueError: {reason}"):
        load(tmp_path)


def test_resize_covers_and_crops_the_centre(tmp_path: Path) -> None:
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))  # the middle third
    wide.save(tmp_path / "wide.png")
    assert decode_image(tmp_path / "wide.png", 10, 10, 1).min() == 255
    assert decode_image(tmp_path / "wide.png", 5, 15, 1).shape == (1, 5, 15)


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name, count in [("dogs", 2), ("cats", 3)]:
        for i in range(count):
            save_image(tmp_path / name / "deeper" / f"{i}.png")
    images = load(tmp_path)
    assert images.classes == ["cats", "dogs"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    save_image(tmp_path / "loose.png")
    assert load(tmp_path).labels is None


def test_splits_are_disjoint_exact_and_stable(tmp_path: Path) -> None:
    for i in range(60):
        save_image(tmp_path / f"{i}.png", (i, 0, 0))

    def reds(train: bool) -> set[int]:
        return set(load(tmp_path, "dataset.test_fraction=0.3", train=train).values[:, 0, 0, 0].tolist())

    train, test = reds(True), reds(False)
    assert train | test == set(range(60))
    assert not train & test
    assert len(test) == 18
    save_image(tmp_path / "new.png", (99, 0, 0))
    assert len(reds(False)) == 18
    assert len(test - reds(False)) <= 1  # another file may take the place of one


def test_class_indices_are_the_same_in_both_splits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(1 if name == "a" else 30):
            save_image(tmp_path / name / f"{i}.png")
    train = load(tmp_path, "dataset.test_fraction=0.5")
    test = load(tmp_path, "dataset.test_fraction=0.5", train=False)
    assert train.classes == test.classes == ["a", "b"]
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(torch.cat([train.labels, test.labels]).tolist()) == [0] + [1] * 30


def test_cache_distinguishes_folders(tmp_path: Path) -> None:
    for name, value in [("one", 0), ("two", 255)]:
        save_image(tmp_path / name / "1.bmp", (value, value, value))
        os.utime(tmp_path / name / "1.bmp", (1e9, 1e9))
    assert load(tmp_path / "one").values.max() == 0
    assert load(tmp_path / "two").values.min() == 255


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a" / "1.png", (1, 0, 0))
    save_image(tmp_path / "test" / "a" / "2.png", (2, 0, 0))
    assert load(tmp_path).values[:, 0, 0, 0].tolist() == [1]
    assert load(tmp_path, train=False).values[:, 0, 0, 0].tolist() == [2]


def test_images_are_decoded_once_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pictures"
    save_image(root / "1.png", (10, 0, 0))
    load(root)
    with monkeypatch.context() as patched:
        patched.setattr("ddpm_cli.data.image_folder.decode_image", lambda *_, **__: pytest.fail("decoded again"))
        assert load(root).values[0, 0, 0, 0] == 10
    save_image(root / "1.png", (20, 200, 0))
    assert load(root).values[0, 0, 0, 0] == 20


def test_folder_without_images_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=rf"dataset.root={tmp_path}: no images"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"dataset.root=/nowhere: no such folder"):
        load(Path("/nowhere"))


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_broken_image_is_rejected_or_skipped(tmp_path: Path, content: bytes) -> None:
    for i in range(3):
        save_image(tmp_path / f"{i}.png", (i, 0, 0))
    (tmp_path / "1b.png").write_bytes(content)
    with pytest.raises(UserError, match=r"1b\.png cannot be decoded .*skip_broken=true"):
        load(tmp_path)
    images = load(tmp_path, "dataset.skip_broken=true")
    assert images.values[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert images.counts == "3 to train, 0 held out, 1 skipped: 1b.png"


def test_truncated_jpeg_is_rejected(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "photo.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"photo\.jpg cannot be decoded"):
        load(tmp_path)


def test_folder_with_only_broken_images_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 images"):
        load(tmp_path, "dataset.skip_broken=true")


def write_bomb(file: Path, width: int, height: int) -> Path:
    """Write a small PNG file whose header declares a size of `width` x `height`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head, pixels = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), zlib.compress(bytes(10_000))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return file


BOMB_SIZES = [(20_000, 20_000), (10_000, 9_000)]
"""Sizes (width, height) that Pillow rejects and that it only warns about."""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", BOMB_SIZES)
def test_decompression_bomb_is_rejected(tmp_path: Path, size: tuple[int, int]) -> None:
    write_bomb(tmp_path / "bomb.png", *size)
    save_image(tmp_path / "sound.png", (7, 0, 0))
    with pytest.raises(UserError, match=r"bomb\.png cannot be decoded .*pixels"):
        load(tmp_path)
    assert load(tmp_path, "dataset.skip_broken=true").values[:, 0, 0, 0].tolist() == [7]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", BOMB_SIZES)
def test_decompression_bomb_is_rejected_by_ddpm_sample(tmp_path: Path, size: tuple[int, int], run: Run) -> None:
    train_into(tmp_path / "here", *TINY, "train.steps=1")
    bomb = write_bomb(tmp_path / "bomb.png", *size)
    result = run("sample", "ckpt=here", "task=inpaint", f"image={bomb}", f"mask={bomb}", "out=new")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"image={bomb}: cannot be read as an image" in result.err
    assert "pixels" in result.err
    assert not Path("new").exists()


def test_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    save_image(tmp_path / "y.png", (7, 0, 0))
    with pytest.raises(UserError, match=r"x\.png cannot be decoded .*not a file"):
        load(tmp_path)
    assert load(tmp_path, "dataset.skip_broken=true").values[:, 0, 0, 0].tolist() == [7]


@pytest.mark.parametrize("target", ["nowhere.png", "x.png"])
def test_broken_link_is_rejected(tmp_path: Path, target: str) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / target)
    save_image(tmp_path / "y.png", (7, 0, 0))
    for follow in ("true", "false"):
        with pytest.raises(UserError, match=r"x\.png cannot be decoded"):
            load(tmp_path, f"dataset.follow_links={follow}")
        images = load(tmp_path, f"dataset.follow_links={follow}", "dataset.skip_broken=true")
        assert images.values[:, 0, 0, 0].tolist() == [7]


@pytest.mark.parametrize("link", ["a/link.png", "a/link", "link.png", "link"])
def test_links_out_of_the_root_need_follow_links(tmp_path: Path, link: str) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    save_image(root / "a" / "1.png", (1, 0, 0))
    save_image(away / "2.png", (2, 0, 0))
    (root / link).symlink_to(away / "2.png" if link.endswith("png") else away)
    with pytest.raises(UserError, match=rf"{root / link} is a symbolic link to a target outside .*follow_links=true"):
        load(root)
    images = load(root, "dataset.follow_links=true")
    assert sorted(images.values[:, 0, 0, 0].tolist()) == [1, 2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_as_links_out_of_the_root_need_follow_links(tmp_path: Path, split: str) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    for name in ("train", "test"):
        save_image((away if name == split else root / name) / "a" / "1.png", (len(name), 0, 0))
    (root / split).symlink_to(away)
    with pytest.raises(UserError, match=rf"{root / split} is a symbolic link to a target outside"):
        load(root, train=split == "train")
    images = load(root, "dataset.follow_links=true", train=split == "train")
    assert images.values[:, 0, 0, 0].tolist() == [len(split)]
    assert images.classes == ["a"]


def test_links_within_the_root_are_followed(tmp_path: Path) -> None:
    save_image(tmp_path / "root" / "a" / "1.png", (1, 0, 0))
    (tmp_path / "root" / "a" / "again.png").symlink_to("1.png")
    (tmp_path / "root" / "b").mkdir()
    (tmp_path / "root" / "b" / "other.png").symlink_to(tmp_path / "root" / "a" / "1.png")
    (tmp_path / "link").symlink_to("root")
    for root in (tmp_path / "root", tmp_path / "link"):
        images = load(root)
        assert images.values[:, 0, 0, 0].tolist() == [1, 1, 1]
        assert images.classes == ["a", "b"]


@pytest.mark.parametrize("follow", ["true", "false"])
def test_loop_of_links_terminates(tmp_path: Path, follow: str) -> None:
    save_image(tmp_path / "a" / "1.png", (1, 0, 0))
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to("c")
    (tmp_path / "c").symlink_to("b")
    assert load(tmp_path, f"dataset.follow_links={follow}").values[:, 0, 0, 0].tolist() == [1]


NAMES = ["two words", "two\nlines\x1b[31m", "ünï 图 🙂", "n" * 251, os.fsdecode(b"no \xff\xfe text"), "-x=1,[y]${z}"]
"""Unusual names that a file system permits."""


def test_unusual_names_of_files_and_folders(tmp_path: Path) -> None:
    for name in NAMES:
        save_image(tmp_path / name / f"{name}.png")
    images = load(tmp_path)
    assert images.classes == sorted(NAMES)
    assert images.labels is not None
    assert images.labels.tolist() == list(range(len(NAMES)))


def test_error_for_unusual_names_is_a_printable_line(tmp_path: Path, run: Run) -> None:
    for name in NAMES:
        root = tmp_path / "pictures" / str(len(name))
        root.mkdir(parents=True)
        (root / f"{name}.png").write_bytes(b"no image")
        result = run("train", "dataset=image_folder", f"dataset.root={root}", "dataset.test_fraction=0")
        assert result.code == 2
        assert "cannot be decoded" in result.err
        assert result.err[:-1].isprintable()


def test_training_and_sampling_with_unusual_class_names(tmp_path: Path, run: Run) -> None:
    for name in NAMES:
        save_image(tmp_path / "pictures" / name / f"{name}.png")
    data = ["dataset=image_folder", f"dataset.root={tmp_path / 'pictures'}", "dataset.image_size=8"]
    result = run(
        "train", *TINY[1:], *data, "dataset.test_fraction=0", "conditioning=class", "train.steps=1", "out=here"
    )
    assert result.code == 0, result.err
    assert "conditioned on 6 classes" in Path("here/train.log").read_text()
    Image.open("here/samples/step_00000001.png").load()
    assert torch.load("here/checkpoints/last.pt", weights_only=True)["classes"] == sorted(NAMES)
    result = run("sample", "ckpt=here", "n=6", "out=new")
    assert result.code == 0, result.err
    Image.open("new/grid.png").load()
    result = run("sample", "ckpt=here", "class=two words", "n=1", "out=one")
    assert result.code == 0, result.err
    result = run("train", "resume=here", "train.steps=2")
    assert result.code == 0, result.err
