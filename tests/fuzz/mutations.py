"""Valid files of each image format, and random mutations of files."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

EXTREMES = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0",
    b"\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\x27\x10",
]


def mutated(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Return `content` with one to four random changes. Some changes insert a piece of `other`."""
    changes: list[Callable[[bytes], bytes]] = [
        lambda data: _replaced(data, rng, bytes([rng.randrange(256)])),
        lambda data: _replaced(data, rng, rng.choice(EXTREMES)),
        lambda data: _replaced(data, rng, rng.choice(EXTREMES), header=64),
        lambda data: _replaced(data, rng, rng.choice(EXTREMES), header=64),
        lambda data: data[: rng.randrange(len(data))],
        lambda data: data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :],
        lambda data: _inserted(data, rng, rng.randbytes(rng.randrange(1, 40))),
        lambda data: _inserted(data, rng, data[: rng.randrange(1, 200)]),
        lambda data: data[: (at := rng.randrange(len(data)))] + data[at + rng.randrange(1, 40) :],
    ]
    for _ in range(rng.choice([1, 1, 2, 4])):
        content = rng.choice(changes)(content) or b"\0"
    return _with_checksums(content) if rng.random() < 0.7 else content


def _replaced(data: bytes, rng: random.Random, piece: bytes, header: int | None = None) -> bytes:
    at = rng.randrange(min(header or len(data), len(data)))
    return data[:at] + piece + data[at + len(piece) :]


def _inserted(data: bytes, rng: random.Random, piece: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + piece + data[at:]


def _with_checksums(data: bytes) -> bytes:
    """Return a PNG with valid chunk checksums, so that decoders read the mutated chunks."""
    at, parts = 8, [data[:8]]
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[at:end], struct.pack(">I", zlib.crc32(data[at + 4 : end]))]
        at = end + 4
    return b"".join(parts) + data[at:] if len(parts) > 1 else data


def images() -> dict[str, dict[str, bytes]]:
    """Return small valid files by format and kind."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, gray = rgba.convert("RGB"), rgba.convert("L")
    palette, bits = rgb.quantize(16), gray.convert("1")
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
    film = [gray, gray.rotate(90), gray.rotate(180)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        "png": {
            "gray": _file("png", gray),
            "gray and alpha": _file("png", rgba.convert("LA")),
            "colour": _file("png", rgb, exif=rotated),
            "colour and alpha": _file("png", rgba),
            "palette": _file("png", palette),
            "transparent palette": _file("png", palette, transparency=bytes(range(16))),
            "16 bit": _file("png", deep),
            "1 bit": _file("png", bits),
            "film": _file("png", rgb, save_all=True, append_images=[rgb.rotate(90)]),
        },
        "jpg": {
            "gray": _file("jpeg", gray),
            "colour": _file("jpeg", rgb, exif=rotated),
            "progressive": _file("jpeg", rgb, progressive=True),
            "inks": _file("jpeg", rgb.convert("CMYK")),
        },
        "webp": {
            "lossy": _file("webp", rgb, exif=rotated),
            "lossless": _file("webp", rgba, lossless=True),
            "film": _file("webp", rgba, save_all=True, append_images=[rgba.rotate(90)]),
        },
        "bmp": {
            "gray": _file("bmp", gray),
            "colour": _file("bmp", rgb),
            "colour and alpha": _file("bmp", rgba),
            "palette": _file("bmp", palette),
            "1 bit": _file("bmp", bits),
        },
        "gif": {
            "palette": _file("gif", palette),
            "transparent": _file("gif", palette, transparency=3),
            "film": _file("gif", film[0], save_all=True, append_images=film[1:]),
        },
        "tiff": {
            "gray": _file("tiff", gray),
            "colour": _file("tiff", rgb, compression="tiff_lzw"),
            "colour and alpha": _file("tiff", rgba, compression="tiff_deflate"),
            "photograph": _file("tiff", rgb, compression="jpeg"),
            "inks": _file("tiff", rgb.convert("CMYK"), compression="packbits"),
            "palette": _file("tiff", palette),
            "16 bit": _file("tiff", deep),
            "floats": _file("tiff", gray.convert("F")),
            "fax": _file("tiff", bits, compression="group4"),
            "film": _file("tiff", film[0], save_all=True, append_images=film[1:]),
        },
    }


def _file(kind: str, image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
