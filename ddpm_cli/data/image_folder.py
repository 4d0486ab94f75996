"""Read a folder of image files. They are decoded once and cached as a memory-mapped table."""

import hashlib
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from ddpm_cli.config import ImageFolder
from ddpm_cli.data.table import Examples, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.files import NoRoom, amount, atomic, write

MAX_PIXELS = 178_956_970 // 2
"""Maximum number of pixels of an image, beyond which Pillow warns about a decompression bomb."""
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # these are rejected instead
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about damage that Pillow can recover from

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Endings of the names of image files, in any letter case."""
DECODER = 2
"""Version of `decode_image`. Images that were decoded by another one are decoded again."""
NAMED = 3
"""Number of skipped files whose names are shown."""


def read_image_folder(dataset: ImageFolder, train: bool, cache: Path) -> Examples:
    """Load the images in `dataset.root` at any depth, sorted by name. The direct sub-folders are the classes.

    The splits are the sub-folders train/ and test/ if both exist. Otherwise, the test split is the fraction
    `dataset.test_fraction` of the files whose names have the smallest hashes. If an image is in no sub-folder, there
    are no labels.

    cache: the folder of the decoded images. Raises `UserError` if there are no images, or if an image cannot be decoded
    and `dataset.skip_broken` is false.
    """
    splits = _list_splits(dataset)
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
    found = [file for folder, some in splits.values() if folder == root for file in some]
    if any(file.parent == root for file in found):  # some images have no class
        return _with_fingerprint(Examples(torch.from_numpy(pixels), source=str(root), counts=counts), stem)
    classes = sorted({file.relative_to(root).parts[0] for file in found})
    labels = [classes.index(files[i].relative_to(root).parts[0]) for i in valid]
    return _with_fingerprint(Examples(torch.from_numpy(pixels), torch.tensor(labels), classes, str(root), counts), stem)


def _with_fingerprint(examples: Examples, stem: Path) -> Examples:
    """Return the examples with their fingerprint, which is computed once and kept beside the decoded images."""
    about = hashlib.sha256(repr(examples.classes).encode())
    if examples.labels is not None:
        about.update(examples.labels.numpy().data)
    kept = stem.with_suffix(f".{about.hexdigest()[:16]}.sha256")
    if not kept.is_file():
        write(kept, fingerprint(examples).encode())
    return replace(examples, fingerprint=kept.read_text())


def decode_image(file: Path, height: int, width: int, channels: int) -> np.ndarray:
    """Return the image in `file` as (channels, height, width) uint8.

    The image is rotated by its EXIF orientation, blended with white where it is transparent, resized to cover the size
    and cropped at the centre. Raises the exceptions of Pillow if the file cannot be decoded.
    """
    if not file.is_file():
        raise OSError("not a file")  # opening a pipe would block, and reading a device may never end
    with Image.open(file) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width}x{opened.height} exceeds {MAX_PIXELS} pixels")
        image = _to_8_bit_opaque(ImageOps.exif_transpose(opened))
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _to_8_bit_opaque(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits per channel and blend it with white where it is transparent.

    Raise `ValueError` for pixels whose colours are not known.
    """
    if image.mode == "LAB":
        raise ValueError("pixels in LAB, which have no colour profile here; save it as RGB")
    if image.mode == "F":
        levels = np.asarray(image)
        if not (levels.min() >= 0 and levels.max() <= 1):  # also false for NaN
            raise ValueError("floating-point pixels outside [0, 1]; save it with 8 or 16 bits")
        return Image.fromarray(np.round(255 * levels.astype(np.float64)).astype(np.uint8))
    if image.mode.startswith("I"):  # 16-bit gray, which `convert` of Pillow would clip
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("more than 16 bits per channel; save it with 8 or 16")
        clear = deep == image.info.get("transparency")
        return Image.fromarray(np.where(clear, 255, (deep + 128) // 257).astype(np.uint8))
    if image.mode in ("La", "RGBa"):  # colours are multiplied by the opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _list_splits(dataset: ImageFolder) -> dict[bool, tuple[Path, list[Path]]]:
    """Return the folder that contains the classes and the images of the train split (True) and the test split."""
    dataset.check_root()
    root = Path(str(dataset.root)).expanduser()
    try:
        if not root.is_dir():
            raise UserError(f"dataset.root={dataset.root}: no such folder; name a folder of images")
        if (root / "train").is_dir() and (root / "test").is_dir():
            folders = {True: root / "train", False: root / "test"}
            return {
                train: (folder, sorted(_find_images(folder, root, dataset.follow_links)))
                for train, folder in folders.items()
            }
        found = sorted(_find_images(root, root, dataset.follow_links))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"dataset.root={dataset.root}: cannot be read ({reason}); name a folder of images") from error
    by_hash = sorted(found, key=lambda file: zlib.crc32(os.fsencode(file.relative_to(root).as_posix())))
    count = round(dataset.test_fraction * len(found))
    return {True: (root, sorted(by_hash[count:])), False: (root, sorted(by_hash[:count]))}


def _find_images(folder: Path, root: Path, follow_links: bool) -> Iterator[Path]:
    """Yield the images in `folder` at any depth. Each folder is visited once, so that loops of links end.

    Raises `UserError` if a link points outside `root` and `follow_links` is false.
    """

    def fail(error: OSError) -> None:
        raise error

    limits, seen = root.resolve(), set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=follow_links):
        wanted = [name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (".", *folders, *wanted):
            path = Path(place, name)
            if not follow_links and path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(limits):
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


def _skipped(root: Path, files: list[Path], valid: list[int]) -> str:
    """Return how many of `files` are not in `valid`, with the names of the first ones; empty if none."""
    broken = [files[i].relative_to(root).as_posix() for i in sorted({*range(len(files))} - {*valid})]
    names = ", ".join(broken[:NAMED]) + (", …" if len(broken) > NAMED else "")
    return f", {len(broken)} skipped: {names}" if broken else ""


def _load_or_decode(
    dataset: ImageFolder, root: Path, files: list[Path], cache: Path
) -> tuple[np.ndarray, list[int], Path]:
    """Return the decoded images (N, C, H, W) uint8, their indices in `files`, and the path of the cache without ending.

    They are read from the cache unless a file has changed. Raises `UserError` if they cannot be written to the cache.
    """
    key = hashlib.sha256(repr((DECODER, str(root.resolve()), dataset.shape, dataset.skip_broken)).encode())
    for file in files:
        stat = file.stat() if file.is_file() else file.lstat()  # a broken link counts as a broken image
        key.update(os.fsencode(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0"))
    stem = cache / key.hexdigest()[:32]
    table, indices = stem.with_suffix(".uint8"), stem.with_suffix(".sound.npy")
    if not (table.is_file() and indices.is_file()):
        size = len(files) * math.prod(dataset.shape)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with atomic(indices, 8 * len(files)) as partial_indices, atomic(table, size) as partial_table:
                valid = _decode_files(partial_table, dataset, files)
                with partial_indices.open("wb") as stream:
                    np.save(stream, np.array(valid, dtype=np.int64))
        except (OSError, NoRoom) as error:
            reason = error.strerror if isinstance(error, OSError) else "the disk is full"
            raise UserError(
                f"DDPM_CACHE={cache.parent}: cannot store {amount(size)} of decoded images ({reason}); "
                "free space there, or name another folder"
            ) from error
    valid = np.load(indices).tolist()
    # Copy on write (mode c), because torch requires writable memory. The file itself is never changed.
    return np.memmap(table, np.uint8, mode="c", shape=(len(valid), *dataset.shape)), valid, stem


def _decode_files(table: Path, dataset: ImageFolder, files: list[Path]) -> list[int]:
    """Decode `files` in parallel and write them to `table`. Return the indices of those that could be decoded.

    Raises `UserError` if a file cannot be decoded and `dataset.skip_broken` is false, or if none can be decoded.
    """
    channels, height, width = dataset.shape

    def read(file: Path) -> np.ndarray | Exception:
        try:
            return decode_image(file, height, width, channels)
        except Exception as error:  # decoders of Pillow raise many types for broken files
            return error

    valid: list[int] = []
    with table.open("wb") as stream, ThreadPoolExecutor() as pool:
        results = tqdm(pool.map(read, files), "decoding", len(files), unit="image", disable=None)
        for i, result in enumerate(results):
            if isinstance(result, np.ndarray):
                stream.write(result.tobytes())
                valid.append(i)
            elif not dataset.skip_broken:
                pool.shutdown(cancel_futures=True)
                raise UserError(
                    f"dataset.root={dataset.root}: {files[i]} cannot be decoded ({_one_line(result)}); "
                    "remove it, or skip broken images with dataset.skip_broken=true"
                ) from result
    if not valid:
        raise UserError(
            f"dataset.root={dataset.root}: none of the {len(files)} images can be decoded; name another folder"
        )
    return valid


def _one_line(error: Exception) -> str:
    """Return the type and the message of `error` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
