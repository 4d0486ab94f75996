"""A folder of image files, decoded once and cached as a memory-mapped table."""

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

MAX_PIXELS = 178_956_970 // 2  # where Pillow begins to warn of decompression bombs
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # they are refused instead
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damage that it can read past

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_image_folder(dataset: ImageFolder, train: bool, cache: Path) -> Examples:
    """Load the images below `dataset.root`, sorted by name; its direct sub-folders are the classes.

    Splits: the sub-folders train/ and test/ where there are both, else a share of `test_fraction` held out by
    a hash of each file's name. Raises `UserError` for a folder without images and for an image that cannot
    be decoded, unless `dataset.skip_broken`.
    """
    root, found, files = _split(dataset, train)
    if not files:
        kinds = " ".join(sorted(SUFFIXES))
        split = "training" if train else "testing"
        raise UserError(
            f"dataset.root={dataset.root}: no images for {split}, with dataset.test_fraction="
            f"{dataset.test_fraction}; looked for {kinds} at any depth"
        )
    pixels, sound = _cached(dataset, root, files, cache)
    if any(file.parent == root for file in found):  # some belong to no class
        return Examples(torch.from_numpy(pixels))
    classes = sorted({file.relative_to(root).parts[0] for file in found})
    labels = [classes.index(files[i].relative_to(root).parts[0]) for i in sound]
    return Examples(torch.from_numpy(pixels), torch.tensor(labels), classes)


def decode(file: Path, height: int, width: int, channels: int) -> np.ndarray:
    """An image as (channels, height, width) uint8: upright, on white where transparent, resized to cover and
    centre-cropped. Raises what Pillow raises for a file that it cannot read.
    """
    if not file.is_file():
        raise OSError("not a file")  # a pipe would be waited for, a device has no end
    with Image.open(file) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width}x{opened.height} are more than {MAX_PIXELS} pixels")
        image = _flattened(ImageOps.exif_transpose(opened))
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _flattened(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits for each channel and without transparency."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's convert would clip
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("more than 16 bits a channel")
        clear = deep == image.info.get("transparency")
        return Image.fromarray(np.where(clear, 255, deep // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _split(dataset: ImageFolder, train: bool) -> tuple[Path, list[Path], list[Path]]:
    """Return the folder that names are relative to, all images below it, and those of the split."""
    dataset.check_root()
    root = Path(str(dataset.root)).expanduser()
    try:
        if not root.is_dir():
            raise UserError(f"dataset.root={dataset.root}: no such folder; name a folder of images")
        if (root / "train").is_dir() and (root / "test").is_dir():
            own = root / ("train" if train else "test")
            found = sorted(_images_below(own, root, dataset.follow_links))
            return own, found, found
        found = sorted(_images_below(root, root, dataset.follow_links))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"dataset.root={dataset.root}: cannot be read ({reason}); name a folder of images") from error
    return root, found, [f for f in found if (_share(f.relative_to(root)) >= dataset.test_fraction) == train]


def _images_below(folder: Path, root: Path, follow_links: bool) -> Iterator[Path]:
    """Yield the images below `folder`, each folder once; links out of `root` are followed only if asked for."""

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
                    f"dataset.root={root}: {path} is a symbolic link that leads out of it; "
                    "follow such links with dataset.follow_links=true, or remove it"
                )
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place, name) for name in wanted)


def _share(name: Path) -> float:
    """Return a number in [0, 1) that depends only on the file name, so that adding files does not move others."""
    return zlib.crc32(os.fsencode(name.as_posix())) / 2**32


def _cached(dataset: ImageFolder, root: Path, files: list[Path], cache: Path) -> tuple[np.ndarray, list[int]]:
    """Return the decoded files (N, C, H, W) and which of `files` they are; cached until a file changes."""
    key = hashlib.sha256(repr((str(root.resolve()), dataset.shape, dataset.skip_broken)).encode())
    for file in files:
        stat = file.stat() if file.is_file() else file.lstat()  # a link that leads nowhere is a broken image
        key.update(os.fsencode(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0"))
    stem = cache / key.hexdigest()[:32]
    table, sound = stem.with_suffix(".uint8"), stem.with_suffix(".sound.npy")
    if not (table.is_file() and sound.is_file()):
        size = len(files) * math.prod(dataset.shape)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with atomic(sound, 8 * len(files)) as list_of_sound, atomic(table, size) as partial:
                good = _decode_into(partial, dataset, files)
                with list_of_sound.open("wb") as stream:
                    np.save(stream, np.array(good, dtype=np.int64))
        except (OSError, NoRoom) as error:
            reason = error.strerror if isinstance(error, OSError) else "no room on the disk"
            raise UserError(
                f"DDPM_CACHE={cache.parent}: cannot hold the decoded images, {amount(size)} ({reason}); "
                "make room there, or name another folder"
            ) from error
    good = np.load(sound).tolist()
    # Copy on write: torch wants writable memory, and nothing is ever written back.
    return np.memmap(table, np.uint8, mode="c", shape=(len(good), *dataset.shape)), good


def _decode_into(table: Path, dataset: ImageFolder, files: list[Path]) -> list[int]:
    """Decode `files` one by one into the file `table`; return those that could be decoded."""
    channels, height, width = dataset.shape

    def read(file: Path) -> np.ndarray | Exception:
        try:
            return decode(file, height, width, channels)
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return error

    sound: list[int] = []
    with table.open("wb") as stream, ThreadPoolExecutor() as pool:
        results = tqdm(pool.map(read, files), "decoding", len(files), unit="image", disable=None)
        for i, result in enumerate(results):
            if isinstance(result, np.ndarray):
                stream.write(result.tobytes())
                sound.append(i)
            elif not dataset.skip_broken:
                pool.shutdown(cancel_futures=True)
                raise UserError(
                    f"dataset.root={dataset.root}: {files[i]} cannot be decoded ({_one_line(result)}); "
                    "remove it, or go on without with dataset.skip_broken=true"
                ) from result
    if not sound:
        raise UserError(f"dataset.root={dataset.root}: none of its {len(files)} images can be decoded")
    if len(sound) < len(files):
        log.warning("skipped %d of %d images that cannot be decoded", len(files) - len(sound), len(files))
    return sound


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
