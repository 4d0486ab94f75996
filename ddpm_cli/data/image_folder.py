"""Read a folder of image files. They are decoded once and cached as a memory-mapped table."""

import hashlib
import logging
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from ddpm_cli.config import ImageFolder
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from ddpm_cli.files import NoRoom, amount, atomic

log = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970 // 2
"""Maximum number of pixels of an image, beyond which Pillow warns about a decompression bomb."""
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # these are rejected instead
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about damage that Pillow can recover from

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Endings of the names of image files, in any letter case."""


def read_image_folder(dataset: ImageFolder, train: bool, cache: Path) -> Examples:
    """Load the images in `dataset.root` at any depth, sorted by name. The direct sub-folders are the classes.

    The splits are the sub-folders train/ and test/ if both exist. Otherwise, the test split is a fraction of about
    `dataset.test_fraction`, chosen by a hash of each file name. If an image is in no sub-folder, there are no labels.

    cache: the folder of the decoded images. Raises `UserError` if there are no images, or if an image cannot be decoded
    and `dataset.skip_broken` is false.
    """
    root, found, files = _list_split(dataset, train)
    if not files:
        kinds = " ".join(sorted(SUFFIXES))
        split = "training" if train else "testing"
        raise UserError(
            f"dataset.root={dataset.root}: no images for {split} with dataset.test_fraction="
            f"{dataset.test_fraction}; name a folder that contains {kinds} files at any depth"
        )
    pixels, valid = _load_or_decode(dataset, root, files, cache)
    if any(file.parent == root for file in found):  # some images have no class
        return Examples(torch.from_numpy(pixels), source=str(root))
    classes = sorted({file.relative_to(root).parts[0] for file in found})
    labels = [classes.index(files[i].relative_to(root).parts[0]) for i in valid]
    return Examples(torch.from_numpy(pixels), torch.tensor(labels), classes, str(root))


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
    """Convert an image to 8 bits per channel and blend it with white where it is transparent."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16-bit gray, which `convert` of Pillow would clip
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("more than 16 bits per channel")
        clear = deep == image.info.get("transparency")
        return Image.fromarray(np.where(clear, 255, deep // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _list_split(dataset: ImageFolder, train: bool) -> tuple[Path, list[Path], list[Path]]:
    """Return the folder that contains the classes, all images in it, and those of the split."""
    dataset.check_root()
    root = Path(str(dataset.root)).expanduser()
    try:
        if not root.is_dir():
            raise UserError(f"dataset.root={dataset.root}: no such folder; name a folder of images")
        if (root / "train").is_dir() and (root / "test").is_dir():
            folder = root / ("train" if train else "test")
            found = sorted(_find_images(folder, root, dataset.follow_links))
            return folder, found, found
        found = sorted(_find_images(root, root, dataset.follow_links))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"dataset.root={dataset.root}: cannot be read ({reason}); name a folder of images") from error
    return root, found, [f for f in found if (_hash_fraction(f.relative_to(root)) >= dataset.test_fraction) == train]


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


def _hash_fraction(name: Path) -> float:
    """Return a number in [0, 1) from a hash of a file name. It does not change when other files are added."""
    return zlib.crc32(os.fsencode(name.as_posix())) / 2**32


def _load_or_decode(dataset: ImageFolder, root: Path, files: list[Path], cache: Path) -> tuple[np.ndarray, list[int]]:
    """Return the decoded images (N, C, H, W) uint8 and their indices in `files`.

    They are read from the cache unless a file has changed. Raises `UserError` if they cannot be written to the cache.
    """
    key = hashlib.sha256(repr((str(root.resolve()), dataset.shape, dataset.skip_broken)).encode())
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
    return np.memmap(table, np.uint8, mode="c", shape=(len(valid), *dataset.shape)), valid


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
    if len(valid) < len(files):
        log.warning("skipped %d of %d images that cannot be decoded", len(files) - len(valid), len(files))
    return valid


def _one_line(error: Exception) -> str:
    """Return the type and the message of `error` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
