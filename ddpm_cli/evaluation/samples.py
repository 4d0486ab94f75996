"""The images to evaluate: generated now, or read from a folder or an npz file."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.config import ImageDataset, ImageFolder
from ddpm_cli.data.image_folder import read_image_folder
from ddpm_cli.data.table import to_tensor
from ddpm_cli.diffusion.denoiser import Network
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import UserError
from ddpm_cli.images.png_gif import to_uint8
from ddpm_cli.sampling.sample_generator import SampleGenerator, batches_with_oom_retry, cycle_labels

DEFAULT_N = {"classifier": 2000, "inception": 10_000}
"""Default number of generated samples, by kind of features."""
KEYS = ("images", "arr_0")
"""Keys of arrays of images in npz files: those of ddpm-sample and those of guided-diffusion."""


class GeneratedSamples:
    """Iterable over batches of n images generated from `seed`, with all classes in turn, as by ddpm-sample.

    nfe: number of network evaluations for an image; known after the first batch.
    """

    def __init__(self, generator: SampleGenerator, n: int, seed: int, batch_size: int) -> None:
        self._evaluated = 0
        counted = replace(generator.denoiser, network=self._counted(generator.denoiser.network))
        self.generator = replace(generator, denoiser=counted)
        self.n, self.seed, self.batch_size = n, seed, batch_size
        self.nfe = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches (B, C, H, W) uint8 on the CPU."""
        labels = cycle_labels(self.n, range(max(1, self.generator.classes)))
        with tqdm(
            total=self.n, desc="samples", unit="image", leave=False, disable=collectives.progress_bar_disabled()
        ) as bar:
            for images, pixels in batches_with_oom_retry(
                self.n, self.batch_size, lambda part: self._batch(labels, part)
            ):
                bar.update(len(images))
                yield pixels

    def _batch(self, labels: Sequence[int], images: range) -> Tensor:
        self._evaluated = 0
        x = torch.empty(0)
        for step in self.generator.steps(self.seed, labels, images):
            x = step.x
        self.nfe = self._evaluated / len(images)
        return to_uint8(x)

    def _counted(self, network: Network) -> Network:
        def call(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            self._evaluated += len(x)
            return network(x, t, y)

        return call


def read_images(samples: str, dataset: ImageDataset, cache: Path) -> Tensor:
    """Read the images of a folder or an npz file, (N, C, H, W) uint8, of the size of those of `dataset`.

    Images of a folder are resized to this size. Raises `UserError` if there are none, or if an npz file has another
    size or type.
    """
    path = Path(samples).expanduser()
    if path.is_dir():
        folder = ImageFolder(
            root=str(path),
            image_size=dataset.image_size,
            channels=dataset.channels,
            flip=False,
            test_fraction=0.0,
            skip_broken=False,
            follow_links=False,
        )
        try:
            return read_image_folder(folder, True, cache / "image_folder").values
        except UserError as error:
            raise UserError(str(error).replace("dataset.root=", "samples=")) from error
    pixels = _npz(samples, path)
    wanted = (*dataset.shape[1:], dataset.channels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != wanted:
        raise UserError(
            f"samples={samples}: holds {pixels.dtype} of {pixels.shape}; for dataset={dataset.name} must be uint8 of "
            f"(N, {wanted[0]}, {wanted[1]}, {wanted[2]})"
        )
    return to_tensor(pixels)


def _npz(samples: str, path: Path) -> np.ndarray:
    try:
        with np.load(path) as arrays:  # does not load pickles by default
            return next(arrays[key] for key in KEYS if key in arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, StopIteration, TypeError, AttributeError) as error:
        raise UserError(
            f"samples={samples}: must be a folder of images, or an npz file with them as {' or '.join(KEYS)}"
        ) from error
