"""Write a folder of images as shards, see `ddpm_cli.data.shards`. The same images give the same bytes."""

import io
import logging
import tarfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ddpm_cli.config import ImageFolder
from ddpm_cli.data.decoding import MAX_BYTES, decode_image, in_threads, undecodable
from ddpm_cli.data.image_folder import Splits, class_names, classes_in, list_splits
from ddpm_cli.data.shards import MANIFEST, SPLITS, Shard, index_text, manifest_text
from ddpm_cli.errors import UserError, first_of
from ddpm_cli.files import amount, atomic, write

log = logging.getLogger(__name__)

SHARD_BYTES = 2**28
"""Size at which a shard is closed."""

Row = tuple[str, int, int, int, int]


class Encoded(NamedTuple):
    """The content of an image file, the ending of its name, and its label, -1 for none."""

    content: bytes
    suffix: str
    label: int


def write_shards(images: ImageFolder, files: Splits, folder: Path) -> None:
    """Write the images of both splits, whose `files` are those of `list_files`, to an empty folder.

    The contents of the image files are copied unchanged. The splits and the classes are those of dataset=image_folder.
    If an error ends this, the files are removed. Raises `UserError` if there are no images to train on, or if an image
    cannot be decoded and `images.skip_broken` is false.
    """
    classes = class_names(files)
    splits: dict[str, list[Shard]] = {}
    total = sum(len(found) for _, found in files.values())
    try:
        with tqdm(total=total, desc="writing", unit="image", disable=None) as bar:
            for train, (root, found) in files.items():
                encoded = _encoded(images, root, found, classes, bar)
                splits[SPLITS[train]] = list(_write_split(folder, SPLITS[train], encoded))
        if not splits[SPLITS[True]]:
            raise UserError(f"dataset.root={images.root}: none of its images for training can be decoded")
        write(folder / MANIFEST, manifest_text(classes, splits).encode())  # last, because it makes the shards valid
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        raise
    shards = [shard for some in splits.values() for shard in some]
    written = sum(shard.count for shard in shards)
    skipped = f"; skipped {total - written} that cannot be decoded" if written < total else ""
    size = amount(sum(shard.size for shard in shards))
    log.info("%d images in %d shards of %s in all are in %s%s.", written, len(shards), size, folder, skipped)


def list_files(images: ImageFolder) -> Splits:
    """Return what `list_splits` does.

    Raise `UserError` if there are no images to train on, or if test/ has a class that train/ lacks.
    """
    files = list_splits(images)
    if not files[True][1]:
        raise UserError(f"dataset.root={images.root}: no images for training; name a folder that contains some")
    classes = class_names(files)
    if classes and (unknown := sorted(classes_in(files[False]) - set(classes))):
        names, known = first_of([name or "no class" for name in unknown]), first_of(classes)
        raise UserError(
            f"dataset.root={images.root}: test/ has images of {names}, and train/ has {known}; move some to train/, or "
            "remove them"
        )
    return files


def _encoded(
    images: ImageFolder, root: Path, files: list[Path], classes: list[str], bar: "tqdm[Any]"
) -> Iterator[Encoded]:
    """Yield the contents of `files`, after a check that they can be decoded."""
    labels = {name: i for i, name in enumerate(classes)}
    for file, content in zip(files, in_threads(_checked_content, files), strict=True):
        bar.update()
        if isinstance(content, bytes):
            label = labels[file.relative_to(root).parts[0]] if classes else -1
            yield Encoded(content, file.suffix.lower(), label)
        elif not images.skip_broken:
            raise undecodable(images.root, str(file), content) from content


def _checked_content(file: Path) -> bytes:
    """Return the content of an image file. Raise an exception if it cannot be decoded."""
    if not file.is_file():
        raise OSError("not a file")  # opening a pipe would block, and reading a device may never end
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"more than {amount(MAX_BYTES)}")
    content = file.read_bytes()
    decode_image(content, 1, 1, 3)
    return content


def _write_split(folder: Path, split: str, images: Iterator[Encoded]) -> Iterator[Shard]:
    """Write shards until there are no more `images`, and yield each."""
    count = 0
    for number, first in enumerate(images):
        path = folder / f"{split}-{number:05}.tar"
        with atomic(path, SHARD_BYTES) as partial:
            rows = _write_tar(partial, count, chain([first], images))
        shard = Shard(path, path.stat().st_size, len(rows))
        write(shard.index, index_text(rows).encode())
        count += len(rows)
        yield shard


def _write_tar(path: Path, number: int, images: Iterator[Encoded]) -> list[Row]:
    """Write images to a tar file until it has `SHARD_BYTES`; return the rows of its index.

    number: of the first image. As in WebDataset, 000000012.png has its label in 000000012.cls.
    """
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, (content, suffix, label) in enumerate(images, start=number):
            name = f"{key:09}{suffix}"
            offset = tar.offset + tarfile.BLOCKSIZE  # after the header, which is one block for a name this short
            _add(tar, name, content)
            if label >= 0:
                _add(tar, f"{key:09}.cls", str(label).encode())
            rows.append((name, offset, len(content), label, zlib.crc32(content)))
            if tar.offset >= SHARD_BYTES:
                break
    return rows


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner and time, so that the bytes depend on nothing but name and content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
