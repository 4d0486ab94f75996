"""Read a folder of image files. They are decoded once and cached as a memory-mapped table."""

import hashlib
import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ddpm_cli.config import ImageFolder
from ddpm_cli.data.decoding import DECODER, Undecoded, cached_table, decode_image
from ddpm_cli.data.table import Examples, with_fingerprint
from ddpm_cli.errors import UserError, first_of
from ddpm_cli.images.own_folders import SAMPLES, own_folder

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Endings of the names of image files, in any letter case."""
Splits = dict[bool, tuple[Path, list[Path]]]
"""The folder that contains the classes, and the images, of the train split (True) and the test split."""
NAMED = 3
"""Number of skipped files whose names are shown."""


def read_image_folder(dataset: ImageFolder, train: bool, cache: Path) -> Examples:
    """Load the images in `dataset.root` at any depth, sorted by name. The direct sub-folders are the classes.

    The splits are the sub-folders train/ and test/ if both exist. Otherwise, the test split is the fraction
    `dataset.test_fraction` of the files whose names have the smallest hashes. If an image is in no sub-folder, there
    are no labels. `class_names` numbers the classes.

    cache: the folder of the decoded images. Raises `UserError` if there are no images, or if an image cannot be decoded
    and `dataset.skip_broken` is false.
    """
    splits = list_splits(dataset)
    root, files = splits[train]
    if not files:
        kinds = " ".join(sorted(SUFFIXES))
        split = "training" if train else "testing"
        raise UserError(
            f"dataset.root={dataset.root}: no images for {split} with dataset.test_fraction="
            f"{dataset.test_fraction}; name a folder that contains {kinds} files at any depth"
        )
    pixels, valid, stem = _load_or_decode(dataset, root, files, cache)
    (_, kept), (_, held_out) = splits[True], splits[False]
    counts = f"{len(valid) if train else len(kept)} to train, {len(held_out)} held out{_skipped(root, files, valid)}"
    examples = Examples(torch.from_numpy(pixels), source=str(root), counts=counts)
    classes, found = class_names(splits), classes_in(splits[train])
    if not classes or "" in found:  # some images have no class
        return with_fingerprint(examples, stem)
    only_held_out = sorted(classes_in(splits[False]) - found) if train else []
    classes += sorted(found - set(classes))
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[_class_of(root, files[i])] for i in valid])
    return with_fingerprint(replace(examples, labels=labels, classes=classes, held_out=only_held_out), stem)


def class_names(splits: Splits) -> list[str]:
    """Return the classes, sorted, which number both splits: those of the train split; none if it has no labels.

    Where one folder is split at random, chance decides which split a class is in, so the classes are those of both.
    """
    same_folder = splits[True][0] == splits[False][0]
    found = classes_in(splits[True]) | (classes_in(splits[False]) if same_folder else set())
    return [] if "" in found else sorted(found)


def classes_in(split: tuple[Path, list[Path]]) -> set[str]:
    """Return the classes of the files of a split; one is empty if a file is in no sub-folder."""
    folder, files = split
    return {_class_of(folder, file) for file in files}


def _class_of(folder: Path, file: Path) -> str:
    name, *deeper = file.relative_to(folder).parts
    return name if deeper else ""


def list_splits(dataset: ImageFolder) -> Splits:
    """Return the folder that contains the classes and the images of the train split (True) and the test split."""
    dataset.check_root()
    root = Path(str(dataset.root)).expanduser()
    try:
        if not root.is_dir():
            raise UserError(f"dataset.root={dataset.root}: no such folder; name a folder of images")
        if (root / "train").is_dir() and (root / "test").is_dir():
            folders = {True: root / "train", False: root / "test"}
            return {
                train: (folder, _sorted(find_files(folder, root, dataset.follow_links)))
                for train, folder in folders.items()
            }
        root = _single_images(dataset.root, root)
        found = _sorted(find_files(root, root, dataset.follow_links))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"dataset.root={dataset.root}: cannot be read ({reason}); name a folder of images") from error
    by_hash = sorted(found, key=lambda file: zlib.crc32(os.fsencode(file.relative_to(root).as_posix())))
    count = round(dataset.test_fraction * len(found))
    return {True: (root, _sorted(by_hash[count:])), False: (root, _sorted(by_hash[:count]))}


def _sorted(files: Iterable[Path]) -> list[Path]:
    """Return the files in the order of `Path`, whose comparisons take longer than those of tuples."""
    return sorted(files, key=lambda file: file.parts)


def _single_images(typed: object, root: Path) -> Path:
    """Return the folder of single images in a folder of ddpm-sample, or any other folder unchanged.

    Raise `UserError` for the folder of another command.
    """
    kind = own_folder(root, [path.name for path in root.iterdir()])
    if kind is SAMPLES:
        return root / "images"
    if kind is not None and kind.command != "ddpm-evaluate -m":
        raise UserError(
            f"dataset.root={typed}: is a folder of {kind.command}, whose pictures are not single images; name a folder "
            "of images"
        )
    return root


def find_files(folder: Path, root: Path, follow_links: bool, suffixes: Collection[str] = SUFFIXES) -> Iterator[Path]:
    """Yield the files with `suffixes` in `folder` at any depth, by default the images.

    Each folder is visited once, so that loops of links end. Pictures that the commands have written about samples,
    such as grid.png beside images/, are left out.

    Raises `UserError` if a link points outside `root` and `follow_links` is false.
    """

    def fail(error: OSError) -> None:
        raise error

    limits, seen = root.resolve(), set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=follow_links):
        own = own_folder(Path(place), [*folders, *names])
        pictures, only_pictures = (own.pictures, own.folders) if own else ((), ())
        visible = [name for name in names if not name.startswith(".") and name not in pictures]
        wanted = [name for name in visible if _suffix(name) in suffixes]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in only_pictures]
        for path in (place, *(os.path.join(place, name) for name in (*folders, *wanted))):  # noqa: PTH118
            if not follow_links and _is_link_out(path, limits):
                raise UserError(
                    f"dataset.root={root}: {path} is a symbolic link to a target outside it; "
                    "follow such links with dataset.follow_links=true, or remove the link"
                )
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was visited
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place, name) for name in wanted)


# A Path for each of 100,000 names would take seconds.
def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _is_link_out(path: str, limits: Path) -> bool:
    """Return whether `path` is a symbolic link to a target outside of `limits`."""
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(limits)  # noqa: PTH114


def _skipped(root: Path, files: list[Path], valid: list[int]) -> str:
    """Return how many of `files` are not in `valid`, with the names of the first ones; empty if none."""
    broken = [files[i].relative_to(root).as_posix() for i in sorted({*range(len(files))} - {*valid})]
    return f", {len(broken)} skipped: {first_of(broken, NAMED)}" if broken else ""


def _load_or_decode(
    dataset: ImageFolder, root: Path, files: list[Path], cache: Path
) -> tuple[np.ndarray, list[int], Path]:
    """Return the decoded images (N, C, H, W) uint8, their indices in `files`, and the path of the cache without ending.

    They are read from the cache unless a file has changed. Raises `UserError` if they cannot be written to the cache.
    """
    channels, height, width = dataset.shape
    key = key_of_files((str(root.resolve()), dataset.shape, dataset.skip_broken), root, files)
    images = Undecoded(
        key=key,
        count=len(files),
        sources=lambda: files,
        decode=partial(decode_image, height=height, width=width, channels=channels),
        name=lambda i: str(files[i]),
        skip_broken=dataset.skip_broken,
        processes=True,
    )
    return *cached_table(dataset.root, images, dataset.shape, cache), cache / key


def key_of_files(facts: object, root: Path, files: Iterable[Path]) -> str:
    """Return a name for the images that are decoded from `files`, which are below `root`, and `facts`.

    It changes if the name, the size or a time of a file does, or `DECODER`.
    """
    key = hashlib.sha256(repr((DECODER, facts)).encode())
    for file in files:
        stat = file.stat() if file.is_file() else file.lstat()  # a broken link counts as a broken image
        key.update(os.fsencode(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0"))
    return key.hexdigest()[:32]
