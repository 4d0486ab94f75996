"""Read shards: uncompressed tar files in the layout of WebDataset, each with an index of its images.

A folder of shards has `shards.json`, which names the classes and the shards of each split, and for each shard
`NAME.tar` an index `NAME.tsv` with a line for each image: its name in the tar file, the offset and the size of its
content in bytes, its label (-1 for none) and the CRC-32 of its content. Images are read at their offsets, so nothing is
unpacked and no name in a tar file is followed.
"""

import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ddpm_cli.config import Shards
from ddpm_cli.data.decoding import MAX_BYTES, decode_image, one_line
from ddpm_cli.data.table import StreamedExamples
from ddpm_cli.errors import Failure, UserError

MANIFEST = "shards.json"
FORMAT = 1
COLUMNS = ("name", "offset", "size", "label", "crc32")
SPLITS = {True: "train", False: "test"}
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.tar")
MAX_MANIFEST_BYTES = 2**26
OPEN_FILES = 64
"""Number of shards that are kept open."""


@dataclass(frozen=True)
class Shard:
    """A tar file of `size` bytes with `count` images."""

    path: Path
    size: int
    count: int

    @property
    def index(self) -> Path:
        """The file with the index."""
        return self.path.with_suffix(".tsv")


@dataclass(frozen=True)
class Manifest:
    """The content of `shards.json`: the names of the classes, empty if there are no labels, and the shards by split."""

    classes: list[str]
    splits: dict[str, list[Shard]]

    def count(self, train: bool) -> int:
        """Return the number of images of a split."""
        return sum(shard.count for shard in self.splits[SPLITS[train]])


def read_shards(dataset: Shards, train: bool) -> StreamedExamples:
    """Return the images of a split of the shards in `dataset.root`, which are decoded when they are needed.

    Raises `UserError` if a shard is missing or has another size than when it was written, or if an index is damaged.
    """
    dataset.check_root()
    root = Path(str(dataset.root)).expanduser()
    try:
        manifest = _read_manifest(root)
        shards = manifest.splits[SPLITS[train]]
        if not shards:
            raise ValueError(f"{MANIFEST}: has no images for {'training' if train else 'testing'}")
        contents, rows = _indices(manifest, train)
    except (OSError, ValueError) as error:
        raise UserError(f"dataset.root={dataset.root}: {_reason(error, root)}") from error
    reader = ShardReader(shards, rows, dataset.shape)
    return StreamedExamples(
        len(reader.table),
        reader.read,
        _fingerprint(manifest.classes, contents),
        torch.from_numpy(reader.table[:, 2].copy()) if manifest.classes else None,
        manifest.classes,
        str(root),
        f"{manifest.count(True)} to train, {manifest.count(False)} held out",
        _held_out(manifest, reader.table) if train else [],
    )


class ShardReader:
    """Reads and decodes the images of `shards` by their number, in the order of the indices.

    Args:
        rows: for each shard the offset, size, label and CRC-32 of its images, (n, 4) int64.
        shape: (channels, height, width) of the decoded images.
    """

    def __init__(self, shards: list[Shard], rows: list[np.ndarray], shape: tuple[int, int, int]) -> None:
        self.shards = shards
        self.table = np.concatenate(rows)
        self.shape = shape
        self._firsts = np.cumsum([0, *(len(part) for part in rows)])
        self._open = lru_cache(OPEN_FILES)(_open_shard)  # a file is closed when no thread reads it any more

    def read(self, index: int) -> np.ndarray:
        """Return image `index` as (C, H, W) uint8. Raise `Failure` if its shard has changed or it is damaged."""
        number = int(np.searchsorted(self._firsts, index, "right")) - 1
        shard = self.shards[number]
        offset, size, _, checksum = (int(value) for value in self.table[index])
        channels, height, width = self.shape
        try:
            file = self._open(shard.path)  # this reference keeps it open
            content = os.pread(file.fileno(), size, offset)
            if len(content) != size or zlib.crc32(content) != checksum:
                raise ValueError("its content is not what the index says")
            return np.ascontiguousarray(decode_image(content, height, width, channels))
        except Exception as error:  # decoders of Pillow raise many types for broken files
            line = index - int(self._firsts[number]) + 2
            raise Failure(
                f"{shard.path}: the image of line {line} of {shard.index.name} cannot be read ({one_line(error)}); "
                "restore this shard, or write the shards again"
            ) from error


def manifest_text(classes: list[str], splits: dict[str, list[Shard]]) -> str:
    """Return the content of `shards.json`."""
    described = {
        split: [{"file": shard.path.name, "bytes": shard.size, "images": shard.count} for shard in shards]
        for split, shards in splits.items()
    }
    return json.dumps({"format": FORMAT, "classes": classes, **described}, indent=1) + "\n"


def index_text(rows: Iterable[tuple[str, int, int, int, int]]) -> str:
    """Return the content of an index with these `COLUMNS`."""
    return "".join("\t".join(map(str, row)) + "\n" for row in (COLUMNS, *rows))


def _read_manifest(root: Path) -> Manifest:
    """Read `shards.json`. Raise `OSError` or `ValueError` if it is missing or not valid."""
    if not root.is_dir():
        raise ValueError("no such folder; name a folder that ddpm-import format=shards has written")
    path = root / MANIFEST
    if not path.exists():
        raise ValueError(f"has no {MANIFEST}; name a folder that ddpm-import format=shards has written to the end")
    content = _content_of(path, MAX_MANIFEST_BYTES)
    try:
        found = json.loads(content)
        classes = found["classes"]
        if found["format"] != FORMAT or not isinstance(classes, list) or not all(type(name) is str for name in classes):
            raise ValueError
        return Manifest(classes, {split: [_shard(root, one) for one in found[split]] for split in SPLITS.values()})
    except (KeyError, TypeError, RecursionError, ValueError) as error:
        raise ValueError(f"{MANIFEST}: is not what ddpm-import format=shards writes; write the shards again") from error


def _shard(root: Path, described: dict[str, Any]) -> Shard:
    """Return the shard that an entry of `shards.json` describes. Raise `ValueError` or similar if it is not valid."""
    name, size, count = described["file"], described["bytes"], described["images"]
    if not SHARD_NAME.fullmatch(name) or type(size) is not int or type(count) is not int or not 0 < count <= size:
        raise ValueError(name)
    return Shard(root / name, size, count)


def _indices(manifest: Manifest, train: bool) -> tuple[list[bytes], list[np.ndarray]]:
    """Return the contents of the indices of a split and their rows. Raise `OSError` or `ValueError`."""
    shards = manifest.splits[SPLITS[train]]
    contents = [_content_of_index(shard) for shard in shards]
    return contents, [_parse_index(shard, content, manifest) for shard, content in zip(shards, contents, strict=True)]


def _held_out(manifest: Manifest, train: np.ndarray) -> list[str]:
    """Return the classes of which only the test split has images. train: the rows of the train split."""
    try:
        test = {int(label) for rows in _indices(manifest, False)[1] for label in rows[:, 2]}
    except (OSError, ValueError):  # said when the test split is read
        return []
    return [manifest.classes[label] for label in sorted(test - set(train[:, 2].tolist())) if label >= 0]


def _content_of_index(shard: Shard) -> bytes:
    """Return the content of the index of a shard, after a check of the size of the shard itself."""
    size = _size_of(shard.path)
    if size != shard.size:
        raise ValueError(f"{shard.path.name}: has {size} bytes instead of {shard.size}; restore this shard")
    return _content_of(shard.index, shard.size)  # an image takes more bytes in the shard than its line in the index


def _parse_index(shard: Shard, content: bytes, manifest: Manifest) -> np.ndarray:
    """Return the offset, size, label and CRC-32 of each image, (n, 4) int64. Raise `ValueError` for invalid ones."""
    name = shard.index.name
    lines = [line.split("\t") for line in content.decode(errors="replace").split("\n")]
    if lines[0] != [*COLUMNS] or lines[-1] != [""] or len(lines) != shard.count + 2:
        raise ValueError(f"{name}: is not the index of {shard.count} images; restore this file")
    try:
        rows = np.array([line[1:] for line in lines[1:-1]]).astype(np.int64).reshape(shard.count, len(COLUMNS) - 1)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: has a line without four numbers; restore this file") from error
    offset, size, label, checksum = rows.T
    last = len(manifest.classes) - 1
    lowest = 0 if manifest.classes else -1
    for ok, column, values, allowed in (
        ((size > 0) & (size <= MAX_BYTES), "size", size, f"in 1..{MAX_BYTES}"),
        (
            (offset >= 0) & (offset <= shard.size - size),
            "offset",
            offset,
            f"within the {shard.size} bytes of the shard",
        ),
        ((label >= lowest) & (label <= last), "label", label, f"in {lowest}..{last}, the classes of {MANIFEST}"),
        ((checksum >= 0) & (checksum < 2**32), "crc32", checksum, "in 0..2**32-1"),
    ):
        if not ok.all():
            at = int(ok.argmin())
            raise ValueError(f"{name}: line {at + 2}: {column}={values[at]}: must be {allowed}; restore this file")
    return rows


def _fingerprint(classes: list[str], indices: list[bytes]) -> str:
    digest = hashlib.sha256(repr((FORMAT, classes)).encode())
    for content in indices:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _open_shard(path: Path) -> BinaryIO:
    _size_of(path)
    return path.open("rb", buffering=0)


def _size_of(path: Path) -> int:
    """Return the size of a regular file. Raise `ValueError` if it is a link or a pipe, for example."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name}: is not a regular file; copy the file itself there")
    return status.st_size


def _content_of(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes."""
    if _size_of(path) > most:
        raise ValueError(f"{path.name}: has more than {most} bytes; restore this file")
    return path.read_bytes()


def _reason(error: OSError | ValueError, root: Path) -> str:
    """Return the message of `error` in one line, with what to do."""
    if not isinstance(error, OSError):
        return str(error)
    name = Path(str(error.filename or root)).name
    if isinstance(error, FileNotFoundError):
        return f"{name}: is missing; restore this file, or write the shards again"
    return f"{name}: cannot be read ({error.strerror}); restore this file, or write the shards again"
