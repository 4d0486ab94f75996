"""Bit depths and kinds of pixels: the levels are those that the specifications of PNG and TIFF say, over white."""

import io
import struct
import zlib
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.data.decoding import decode_image

Pixel = tuple[int, ...]
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types of PNG."""
SPREAD = {1: (0, 1), 2: (0, 1, 2, 3), 4: (0, 1, 5, 7, 15), 8: (0, 1, 5, 85, 255), 16: (0, 1, 257, 5000, 43690, 65535)}
"""Some levels of each bit depth."""


def packed(levels: Sequence[int], depth: int, order: str = ">") -> bytes:
    if depth == 16:
        return struct.pack(f"{order}{len(levels)}H", *levels)
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def png(pixels: Sequence[Pixel], depth: int, colour: int, trns: bytes = b"", palette: bytes = b"") -> bytes:
    """Return a PNG of one row, without a library that could have the same faults."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", len(pixels), 1, depth, colour, 0, 0, 0))]
    chunks += [chunk(b"PLTE", palette)] if palette else []
    chunks += [chunk(b"tRNS", trns)] if trns else []
    row = b"\0" + packed([*chain(*pixels)], depth)
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")])


def tiff(pixels: Sequence[Pixel], depth: int, photometric: int, alpha: int | None = None) -> bytes:
    """Return a little-endian TIFF of one row. alpha: the value of ExtraSamples."""
    data, samples = packed([*chain(*pixels)], depth, "<"), len(pixels[0])
    tags = {256: [len(pixels)], 257: [1], 258: [depth] * samples, 259: [1], 262: [photometric], 273: [0]}
    tags |= {277: [samples], 278: [1], 279: [len(data)]} | ({} if alpha is None else {338: [alpha]})
    start, more = 8 + 2 + 12 * len(tags) + 4, b""
    entries = []
    size = sum(2 * len(values) for values in tags.values() if len(values) > 2)
    for tag, values in tags.items():
        raw = struct.pack(f"<{len(values)}H", *(values if tag != 273 else [start + size]))
        if len(raw) > 4:
            raw, more = struct.pack("<I", start + len(more)), more + raw
        entries.append(struct.pack("<HHI", tag, 3, len(values)) + raw.ljust(4, b"\0"))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + more + data


def decoded(encoded: bytes, width: int, channels: int) -> list[list[int]]:
    """Return the pixels of an image of one row."""
    return decode_image(encoded, 1, width, channels)[:, 0].T.tolist()


def over_white(level: float, opacity: float) -> int:
    return round(255 * (level * opacity + 1 - opacity))


@pytest.mark.parametrize("depth", SPREAD)
def test_transparent_gray_of_png(depth: int) -> None:
    levels, top = SPREAD[depth], 2**depth - 1
    for clear in levels:
        found = decoded(png([(level,) for level in levels], depth, GRAY, struct.pack(">H", clear)), len(levels), 1)
        assert found == [[255 if level == clear else round(255 * level / top)] for level in levels]


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_png(depth: int) -> None:
    """Colours that differ in the lowest bit of 16 are others. Pillow drops the lower 8 bits."""
    clear = (18, 35, 52) if depth == 8 else (0x1234, 0x2345, 0x3456)
    other = (*clear[:2], clear[2] ^ 1)
    white, found = decoded(png([clear, other], depth, RGB, struct.pack(">HHH", *clear)), 2, 3)
    assert white == [255] * 3
    assert np.abs(np.array(found) - np.array(other) * 255 / (2**depth - 1)).max() <= 1
    assert decoded(png([clear, other], depth, RGB), 2, 3)[0] == [18, 35, 52]


def test_transparent_colour_of_a_rotated_png() -> None:
    """Pillow goes on with decoding where it was, and the orientation is applied to what is white, too."""
    clear, other = (0x1234, 0x2345, 0x3456), (0xFFFF, 0, 0)
    encoded = png([clear, other], 16, RGB, struct.pack(">HHH", *clear))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    turned = encoded[:33] + chunk + encoded[33:]  # after IHDR
    assert decode_image(turned, 2, 1, 3)[:, :, 0].T.tolist() == [[255] * 3, [255, 0, 0]]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [GRAY_ALPHA, RGB_ALPHA])
def test_opacity_of_png(depth: int, colour: int) -> None:
    top = 2**depth - 1
    colours = [(top,), (top // 3,), (0,)] if colour == GRAY_ALPHA else [(top, 0, top // 2), (top // 3, 7, 9), (0, 0, 0)]
    pixels = [(*levels, alpha) for levels, alpha in zip(colours, (top, top // 3, 0), strict=True)]
    expected = [[over_white(level / top, pixel[-1] / top) for level in pixel[:-1]] for pixel in pixels]
    found = decoded(png(pixels, depth, colour), 3, 1 if colour == GRAY_ALPHA else 3)
    assert np.abs(np.array(found) - expected).max() <= (0 if depth == 8 else 1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("opacities", [b"", b"\0", b"\xff\0", b"\x80\xff"])
def test_transparent_entries_of_a_palette(depth: int, opacities: bytes) -> None:
    colours = [(10, 20, 30), (200, 100, 50), (0, 255, 0), (9, 9, 9)][: 2**depth]
    opacity = [value / 255 for value in opacities] + [1.0] * (4 - len(opacities))
    encoded = png([(i,) for i in range(len(colours))], depth, PALETTE, opacities, bytes(chain(*colours)))
    expected = [[over_white(level / 255, opacity[i]) for level in colour] for i, colour in enumerate(colours)]
    assert np.abs(np.array(decoded(encoded, len(colours), 3)) - expected).max() <= 1


@pytest.mark.parametrize("depth", SPREAD)
@pytest.mark.parametrize("photometric", [0, 1])
def test_gray_of_tiff(depth: int, photometric: int) -> None:
    """Photometric 0 is white where the level is 0."""
    levels, top = SPREAD[depth], 2**depth - 1
    found = decoded(tiff([(level,) for level in levels], depth, photometric), len(levels), 1)
    assert found == [[round(255 * (level if photometric else top - level) / top)] for level in levels]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("alpha", [None, 0, 1, 2])
def test_colours_of_tiff(depth: int, alpha: int | None) -> None:
    """ExtraSamples 0 is no opacity, 1 has been multiplied into the colours, and 2 has not."""
    top = 2**depth - 1
    pixels: list[Pixel] = [(top // 3, 0, top // 6, top // 3), (top, 0, top // 2, top), (0, 0, 0, 0)]
    expected = []
    for *colour, opacity in pixels:
        share = opacity / top if alpha else 1
        levels = [level / opacity if alpha == 1 and opacity else level / top for level in colour]
        expected.append([over_white(level, share) for level in levels])
    given = [pixel[:3] for pixel in pixels] if alpha is None else pixels
    assert np.abs(np.array(decoded(tiff(given, depth, 2, alpha), 3, 3)) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L"])
def test_transparent_entry_of_a_gif(mode: str) -> None:
    """A palette of grays is one that Pillow takes for levels."""
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])
    buffer = io.BytesIO()
    image.save(buffer, format="GIF", transparency=1)
    first, clear, last = decoded(buffer.getvalue(), 3, 3)
    assert clear == [255] * 3
    assert (first, last) == (([10, 20, 30], [0, 255, 0]) if mode == "P" else ([0] * 3, [2] * 3))


def test_opacity_of_webp() -> None:
    pixels = np.array([[[255, 0, 127, 255], [90, 60, 30, 85], [1, 2, 3, 0]]], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True, exact=True)
    expected = [[over_white(level / 255, pixel[3] / 255) for level in pixel[:3]] for pixel in pixels[0].tolist()]
    assert np.abs(np.array(decoded(buffer.getvalue(), 3, 3)) - expected).max() <= 1
