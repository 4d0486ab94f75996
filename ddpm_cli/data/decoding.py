"""Decode images, and keep those of a dataset in the cache as a memory-mapped table."""

import math
import os
import shutil
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ddpm_cli.data.pixel_formats import correct_levels
from ddpm_cli.distributed.waiting import cores
from ddpm_cli.errors import Failure, UserError
from ddpm_cli.files import NoRoom, amount, atomic

Source = TypeVar("Source")
Result = TypeVar("Result")

MAX_PIXELS = 178_956_970 // 2
"""Maximum number of pixels of an image, beyond which Pillow warns about a decompression bomb."""
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # these are rejected instead
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about damage that Pillow can recover from

DECODER = 3
"""Version of `decode_image`. Images that were decoded by another one are decoded again."""
MAX_BYTES = 2**28
"""Maximum size in bytes of an encoded image in a shard or a Parquet file."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats of images in shards and Parquet files. Others are not tried, because some of them start programs."""
PROCESSES_FROM = 2000
"""Number of images from which they are decoded in processes, which then take less time than they need to start."""
WINDOW = 32
"""Number of images for each thread that are being decoded or wait to be used."""


@dataclass(frozen=True)
class Undecoded(Generic[Source]):
    """The images of a split before they are decoded.

    Attributes:
        key: identifies the decoded images in the cache, as part of a file name.
        count: the number of images.
        sources: opens the images; called only if they are not in the cache.
        decode: returns an image of `sources` as (C, H, W) uint8, or raises any exception; a `Failure` is raised again.
        name: returns the name of image i for messages.
        skip_broken: whether images that cannot be decoded are left out.
        processes: whether `decode` may be called in other processes. The `sources` are then a list in memory.
    """

    key: str
    count: int
    sources: Callable[[], Iterable[Source]]
    decode: Callable[[Source], np.ndarray]
    name: Callable[[int], str]
    skip_broken: bool
    processes: bool = False


def decode_image(source: Path | bytes, height: int, width: int, channels: int) -> np.ndarray:
    """Return an image, which is in a file or encoded in bytes, as (channels, height, width) uint8.

    The image is rotated by its EXIF orientation, blended with white where it is transparent, resized to cover the size
    and cropped at the centre. Raises the exceptions of Pillow if the image cannot be decoded.
    """
    with _open(source) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width}x{opened.height} exceeds {MAX_PIXELS} pixels")
        correct_levels(opened)
        image = _to_8_bit_opaque(ImageOps.exif_transpose(opened))
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _open(source: Path | bytes) -> ImageFile:
    if isinstance(source, Path):
        if not source.is_file():
            raise OSError("not a file")  # opening a pipe would block, and reading a device may never end
        return Image.open(source)
    Image.init()
    try:
        return Image.open(BytesIO(source), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:  # whose message contains an address
        raise ValueError(f"not an image of the formats {' '.join(FORMATS)}") from error


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


def in_threads(work: Callable[[Source], Result], sources: Iterable[Source]) -> Iterator[Result | Exception]:
    """Yield what `work` returns or raises for each of `sources`, in order, computed by several threads.

    Only a few of `sources` are read ahead, so that they need not fit in memory together.
    """

    def attempt(source: Source) -> Result | Exception:
        try:
            return work(source)
        except Exception as error:  # decoders of Pillow raise many types for broken files
            return error

    threads = min(32, (os.cpu_count() or 1) + 4)  # more than cores, because some wait for the disk
    pool = ThreadPoolExecutor(threads)
    window: deque[Future[Result | Exception]] = deque()
    try:
        left = iter(sources)
        window.extend(pool.submit(attempt, source) for source in islice(left, WINDOW * threads))
        while window:
            yield window.popleft().result()
            window.extend(pool.submit(attempt, source) for source in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)


class _Decoded(Dataset[np.ndarray | str]):
    """Images that are decoded when they are asked for, or descriptions of why they cannot be decoded."""

    def __init__(self, decode: Callable[[Source], np.ndarray], sources: Sequence[Source]) -> None:
        self._decode, self._sources = decode, sources

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return self._decode(self._sources[index])
        except Exception as error:  # a description, because not all exceptions can be pickled
            return one_line(error)


def in_processes(
    decode: Callable[[Source], np.ndarray], sources: Sequence[Source], size: int
) -> Iterator[np.ndarray | str]:
    """Yield what `decode` returns for each of `sources`, or a description of what it raises, in order.

    The processes are forked, so that nothing is pickled but the results. They end with this one,
    which Ctrl-C reaches alone.

    size: the number of bytes of a result, which decides how many are sent together.
    """
    loader = DataLoader(
        _Decoded(decode, sources),
        batch_size=min(64, max(1, 2**22 // size)),
        num_workers=min(cores(), len(sources)),
        collate_fn=list,
        multiprocessing_context="fork",
    )
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        batches = iter(loader)  # the processes start here and inherit the blocked signal
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        for batch in batches:
            yield from batch
    except RuntimeError as error:
        raise Failure(
            f"a process that decodes images was ended by the system ({one_line(error)}); start again"
        ) from error


def cached_table(
    root: str | None, images: Undecoded[Source], shape: tuple[int, int, int], cache: Path
) -> tuple[np.ndarray, list[int]]:
    """Return the decoded images (N, *shape) uint8, memory-mapped, and the number of each among all images.

    Args:
        root: the value of dataset.root, for messages.
        cache: the folder of the tables, from which the images are read if they have been decoded before.

    Raises `UserError` if an image cannot be decoded, or if the disk has no room for the table.
    """
    table, indices = cache / f"{images.key}.uint8", cache / f"{images.key}.sound.npy"
    if not (table.is_file() and indices.is_file()):
        size = images.count * math.prod(shape)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(cache).free < size:  # noticed now rather than after hours of decoding
                raise NoRoom(table, size)
            with atomic(indices, 8 * images.count) as partial_indices, atomic(table, size) as partial_table:
                valid = _decode_into(partial_table, images, math.prod(shape), root)
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
    return np.memmap(table, np.uint8, mode="c", shape=(len(valid), *shape)), valid


def _decode_all(images: Undecoded[Source], size: int) -> Iterator[np.ndarray | Exception | str]:
    """Yield the decoded `images` of `size` bytes, or why they cannot be decoded, in order."""
    if images.processes and images.count >= PROCESSES_FROM and sys.platform == "linux":  # elsewhere forking is not safe
        return in_processes(images.decode, list(images.sources()), size)
    return in_threads(images.decode, images.sources())


def _decode_into(table: Path, images: Undecoded[Source], size: int, root: str | None) -> list[int]:
    """Decode `images` in parallel and write them to `table`. Return the numbers of those that could be decoded.

    size: the number of bytes of a decoded image.


    Raises `UserError` if an image cannot be decoded and is not to be skipped, or if none can be decoded.
    """
    valid: list[int] = []
    with table.open("wb") as stream:
        for i, result in enumerate(
            tqdm(_decode_all(images, size), "decoding", images.count, unit="image", disable=None)
        ):
            if isinstance(result, np.ndarray):
                stream.write(result.tobytes())
                valid.append(i)
            elif isinstance(result, Failure):
                raise result
            elif not images.skip_broken:
                raise undecodable(root, images.name(i), result)
    if not valid:
        raise UserError(f"dataset.root={root}: none of the {images.count} images can be decoded; name another folder")
    return valid


def undecodable(root: str | None, name: str, reason: Exception | str) -> UserError:
    """Return the error for an image of `dataset.root` that cannot be decoded for `reason`."""
    described = reason if isinstance(reason, str) else one_line(reason)
    return UserError(
        f"dataset.root={root}: {name} cannot be decoded ({described}); "
        "remove it, or skip broken images with dataset.skip_broken=true"
    )


def one_line(error: Exception) -> str:
    """Return the type and the message of `error` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
