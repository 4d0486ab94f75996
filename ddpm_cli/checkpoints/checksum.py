"""Check a checkpoint file before anything in it is loaded: it must be complete and harmless.

The file is a zip archive, as torch writes it, whose comment holds the SHA-256 of all bytes before it.
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
"""Names of the entries that torch writes into an archive."""
MAX_PICKLE = 8 * 2**20
"""Largest data.pkl in bytes: several times that of the largest network."""
MAX_OPERATIONS = 600_000
"""Largest number of pickle operations; the largest network that the options allow has 530,000."""
CALLED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage")
"""Names that the pickle of plain data and tensors refers to."""


class Damaged(Exception):
    """The file is truncated, changed, or not a checkpoint; the message says which."""


def append_checksum(path: Path) -> None:
    """Append the checksum of a zip archive without a comment as its comment."""
    with path.open("rb+") as stream:
        stream.seek(-2, os.SEEK_END)  # the length of the comment ends the archive
        stream.write(struct.pack("<H", LENGTH))
        size = stream.tell()
        stream.seek(0)
        checksum = _sha256_of_bytes(stream, size)
        stream.write(MARK + checksum)


def check_checksum(path: Path) -> None:
    """Raise `Damaged` unless the checksum that `append_checksum` wrote matches."""
    checksum = _stored_checksum(path)
    with path.open("rb") as stream:
        if _sha256_of_bytes(stream, path.stat().st_size - LENGTH) != checksum:
            raise Damaged("damaged: its checksum does not match")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return _sha256_of_bytes(stream, path.stat().st_size).decode()


def check_mark(path: Path) -> None:
    """Raise `Damaged` unless the file ends with a checksum, which need not match."""
    _stored_checksum(path)


def _stored_checksum(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - LENGTH))
        mark = stream.read(LENGTH)
    if not mark.startswith(MARK):
        raise Damaged("not a checkpoint of this version of ddpm-train, or one that was cut short")
    return mark.removeprefix(MARK)


def check_archive(path: Path) -> None:
    """Raise `Damaged` for an archive that torch did not write, since reading it could take any amount of memory."""
    try:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError) as error:
        raise Damaged("not an archive as ddpm-train writes it") from error
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise Damaged("not an archive as ddpm-train writes it: compressed or encrypted")
    if not all(ENTRY.fullmatch(entry.filename) for entry in entries):
        raise Damaged("not an archive as ddpm-train writes it: unexpected names of entries")
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE for entry in entries):
        raise Damaged("not an archive written by ddpm-train: too much data besides the tensors")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Damaged("not an archive as ddpm-train writes it: its entries are larger than the file")


def check_pickle(path: Path) -> None:
    """Raise `ValueError` unless the pickle in an archive is a tree of plain data and tensors of bounded size.

    torch refuses code, but a few bytes can make it allocate gigabytes, for example bytearray(2**40).
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                _check_operations(archive.read(entry))


def _check_operations(content: bytes) -> None:
    names: set[Any] = set()  # memo entries that may be used several times
    before = ""
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        kind = operation.name
        if count >= MAX_OPERATIONS:
            raise ValueError("too many operations")
        if kind == "GLOBAL" and not CALLED.fullmatch(str(argument)):
            raise ValueError(f"names {argument}")
        if kind.endswith("GET") and argument not in names:
            raise ValueError("refers to the same object twice")
        if isinstance(argument, int) and argument.bit_length() > 64:
            raise ValueError("a number too large")
        if kind.endswith("PUT"):
            names.discard(argument)
            if before in ("GLOBAL", "BINUNICODE"):
                names.add(argument)
        before = kind


def _check_end(path: Path) -> None:
    """Raise `BadZipFile` unless the central directory is unambiguous and of bounded size.

    It must be right before the end records, at the offset that these give (zip specification, 4.3.14 to 4.3.16).
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


def _sha256_of_bytes(stream: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the next `size` bytes in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := stream.read(min(CHUNK, size)):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()
