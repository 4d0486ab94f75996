"""What can be known of a checkpoint file before anything in it is read: that it is whole, and no trap.

The file is a zip archive, as torch writes it, whose comment holds the SHA-256 of all that stands before it.
"""

import hashlib
import os
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

MARK = b"ddpm-cli sha256:"
LENGTH = len(MARK) + 64
CHUNK = 2**20
ENTRY = re.compile(r"[^/\\]+/(data\.pkl|data/[0-9]+|\.data/serialization_id|\.?[a-z_]+)")
"""The names that torch gives to what is in an archive."""
MAX_PICKLE = 8 * 2**20
"""Bytes of data.pkl, which has the tensors' names and shapes: several times those of the largest network."""
MAX_OPERATIONS = 600_000
"""In data.pkl; the largest network that the options allow has 530,000."""
CALLED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage")
"""What the pickle of plain data and tensors names."""


class Damaged(Exception):
    """A file that is cut, changed, or was never a checkpoint; says which."""


def seal(path: Path) -> None:
    """Put the checksum of a zip archive without a comment into its comment."""
    with path.open("rb+") as stream:
        stream.seek(-2, os.SEEK_END)  # the length of the comment ends the archive
        stream.write(struct.pack("<H", LENGTH))
        size = stream.tell()
        stream.seek(0)
        checksum = _sha256(stream, size)
        stream.write(MARK + checksum)


def check_seal(path: Path) -> None:
    """Raise `Damaged` unless every byte of `path` is as `seal` left it."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END) - LENGTH
        stream.seek(max(0, size))
        mark = stream.read(LENGTH)
        if not mark.startswith(MARK):
            raise Damaged("not a checkpoint of this version of ddpm-train, or one that was cut short")
        stream.seek(0)
        if _sha256(stream, size) != mark.removeprefix(MARK):
            raise Damaged("damaged: its checksum does not match")


def check_archive(path: Path) -> None:
    """Raise `Damaged` for an archive that is not as torch writes it: reading it could take any amount of memory."""
    try:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError) as error:
        raise Damaged("not an archive as ddpm-train writes it") from error
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise Damaged("not an archive as ddpm-train writes it: compressed or encrypted")
    if not all(ENTRY.fullmatch(entry.filename) for entry in entries):
        raise Damaged("not an archive as ddpm-train writes it: entries of other names")
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE for entry in entries):
        raise Damaged("not an archive as ddpm-train writes it: too much beside the tensors")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Damaged("not an archive as ddpm-train writes it: larger inside than outside")


def check_pickle(path: Path) -> None:
    """Raise `ValueError` unless the pickle in an archive is a tree of plain data and tensors, made in a few steps.

    torch refuses code, yet a few bytes may have it make or copy gigabytes: bytearray(2**40) is no code.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                _check_operations(archive.read(entry))


def _check_operations(content: bytes) -> None:
    names: set[Any] = set()  # places in the memo: all else is used but once
    before = ""
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        kind = operation.name
        if count >= MAX_OPERATIONS:
            raise ValueError("too many operations")
        if kind == "GLOBAL" and not CALLED.fullmatch(str(argument)):
            raise ValueError(f"names {argument}")
        if kind.endswith("GET") and argument not in names:
            raise ValueError("holds a thing twice")
        if isinstance(argument, int) and argument.bit_length() > 64:
            raise ValueError("a number too large")
        if kind.endswith("PUT"):
            names.discard(argument)
            if before in ("GLOBAL", "BINUNICODE"):
                names.add(argument)
        before = kind


def _check_end(path: Path) -> None:
    """Raise `BadZipFile` unless all readers take the same bytes for the list of entries, and not too many of them.

    It stands right before the records of the end, and these say so (zip's format, 4.3.14 to 4.3.16).
    """
    with path.open("rb") as stream:
        at = stream.seek(-LENGTH - 98, os.SEEK_END)
        long_end, size, start, locator, place, end, short_size, short_start = struct.unpack(
            "<4s36xQQ4s4xQ4x4s8xII2x", stream.read(98)
        )
    if locator != b"PK\6\7":  # without the records for large archives
        long_end, size, start, place, at = b"PK\6\6", short_size, short_start, at + 76, at + 76
    if (long_end, end) != (b"PK\6\6", b"PK\5\6") or place != at or start + size != at or size > MAX_PICKLE:
        raise zipfile.BadZipFile


def _sha256(stream: BinaryIO, size: int) -> bytes:
    """Of the next `size` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := stream.read(min(CHUNK, size)):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()
