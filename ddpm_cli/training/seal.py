"""What can be known of a checkpoint file before anything in it is read: that it is whole, and no trap.

The file is a zip archive, as torch writes it, whose comment holds the SHA-256 of all that stands before it.
"""

import hashlib
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

MARK = b"ddpm-cli sha256:"
LENGTH = len(MARK) + 64
CHUNK = 2**20
ENTRY = re.compile(r"[^/\\]+/(data\.pkl|data/[0-9]+|\.data/serialization_id|\.?[a-z_]+)")
"""The names that torch gives to what is in an archive."""
MAX_PICKLE = 8 * 2**20
"""Bytes of data.pkl, which has the tensors' names and shapes: several times those of the largest network."""


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
        _check_directory_size(path)
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


def _check_directory_size(path: Path) -> None:
    """Raise `BadZipFile` for a list of entries too long to be read (zip's format, 4.3.16)."""
    with path.open("rb") as stream:
        stream.seek(-LENGTH - 22, os.SEEK_END)
        signature, size = struct.unpack("<4s8xI", stream.read(16))
    if signature != b"PK\5\6" or size > MAX_PICKLE:
        raise zipfile.BadZipFile


def _sha256(stream: BinaryIO, size: int) -> bytes:
    """Of the next `size` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := stream.read(min(CHUNK, size)):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()
