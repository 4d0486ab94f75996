"""Draw samples and write them: images, a grid, a film and arrays."""

import io
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.checkpoints.loading import load_guide, load_trained
from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.config import SampleConfig
from ddpm_cli.distributed import collectives
from ddpm_cli.files import atomic, write
from ddpm_cli.images.plots import save_labelled_rows
from ddpm_cli.images.png_gif import save_gif, save_png, to_image, to_uint8
from ddpm_cli.sampling.build import compile_for_inference
from ddpm_cli.sampling.film import evenly
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry, generator_of
from ddpm_cli.sampling.tasks import Task, plan
from ddpm_cli.tracking.terminal import ImageBar, status

log = logging.getLogger(__name__)

MAX_IN_GRID = 256
"""Largest number of images in grid.png and film.gif."""
WRITERS = 4
"""Threads that compress and write images. Most of their time they wait for the disk."""
MAX_CLOUDS = 10
"""Largest number of scatter plots in reverse.png."""
Batches: TypeAlias = Iterator[tuple[range, dict[int, Tensor]]]
"""The numbers of some samples, and these samples on the CPU after some steps (1 is the first).

They are images (B, C, H, W) uint8 or points (B, 2) float32.
"""


def draw(config: SampleConfig, folder: Path) -> None:
    """Draw samples and write them to `folder`. Each of several processes draws a share; rank 0 writes."""
    with status("loading the checkpoint"):
        trained = load_trained(config.ckpt, config.weights, config.device, config.precision or "fp32")
        guide = load_guide(config.guidance.guide, config.device, config.precision or "fp32")
    generator = generator_of(
        trained,
        config.sampler,
        config.variance,
        config.guidance_scale,
        config.sampler_changes,
        config.guidance,
        guide,
    )
    task = plan(config, generator, trained)
    n, calls = len(task.labels), task.steps * generator.sampler.calls_per_step
    compile_for_inference(trained.network, trained.device, config.compile, n, config.batch_size, calls)
    collectives.on_rank_zero(lambda: new_folder(folder))
    points = len(generator.shape) == 1
    recorded = {*evenly(task.steps)} if config.gif else set()
    recorded |= {*evenly(task.steps, MAX_CLOUDS)} if points else {task.steps}
    batches = _draw_batches(task, config.batch_size, recorded)
    if collectives.is_rank_zero():
        _write_all(batches, task, points, config, folder)
    else:
        deque(batches, maxlen=0)


def _draw_batches(task: Task, batch_size: int, recorded: set[int]) -> Batches:
    """Draw the samples of a task; record them after the steps `recorded`."""
    n = len(task.labels)
    with ImageBar(n, "samples", leave=True) as bar:

        def frames_of(images: range) -> dict[int, Tensor]:
            frames = {}
            for i, step in enumerate(task.start(images), start=1):
                bar.reach(images, i / task.steps)
                if i in recorded:
                    frames[i] = to_uint8(step.x) if step.x.ndim == 4 else step.x.cpu()
            return frames

        yield from batches_with_oom_retry(n, batch_size, frames_of)


def _write_all(batches: Batches, task: Task, points: bool, config: SampleConfig, folder: Path) -> None:
    """Write the samples batch by batch, then the pictures and arrays."""
    kept: list[Tensor] = []
    films: list[dict[int, Tensor]] = []
    with _image_writer(folder / "images") as write_images:
        for images, frames in batches:
            last = frames[task.steps]
            if not points:
                write_images(last, images)
            if config.npz or points:
                kept.append(last)
            if points or images.start < MAX_IN_GRID:
                films.append(frames)
    film = {i: torch.cat([frames[i] for frames in films]) for i in films[0]}
    if not points:
        film = {i: x[:MAX_IN_GRID] for i, x in film.items()}
    save_png(task.draw(film[task.steps]), folder / "grid.png")
    if config.gif:
        save_gif([task.draw(film[i]) for i in evenly(task.steps)], folder / "film.gif")
    if points:
        _write_points(torch.cat(kept), film, folder)
    if config.npz:
        _write_npz(torch.cat(kept), task.labels, folder / "samples.npz")
    log.info("%d %s are in %s", len(task.labels), "points" if points else "images", folder)


@contextmanager
def _image_writer(folder: Path) -> Iterator[Callable[[Tensor, range], None]]:
    """Yield a function that writes images (B, C, H, W) uint8 by their numbers in a few threads, and does not wait.

    Its next call does, and the end: they raise the errors of the threads.
    """
    pool = ThreadPoolExecutor(WRITERS)
    pending: Iterator[None] = iter(())

    def write_images(pixels: Tensor, numbers: range) -> None:
        nonlocal pending
        deque(pending, maxlen=0)
        folder.mkdir(exist_ok=True)
        pending = pool.map(save_png, map(to_image, pixels), [folder / f"{i:05d}.png" for i in numbers])

    try:
        yield write_images
        deque(pending, maxlen=0)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_points(points: Tensor, film: dict[int, Tensor], folder: Path) -> None:
    """Write points.csv, with x and y in each line, and reverse.png, scatter plots after some of the steps."""
    table = io.BytesIO()
    np.savetxt(table, points.numpy(), fmt="%.6g", delimiter=",", header="x,y", comments="")
    write(folder / "points.csv", table.getvalue())
    steps = evenly(max(film), MAX_CLOUDS)
    save_labelled_rows({"reverse": [film[i] for i in steps]}, [f"step {i}" for i in steps], folder / "reverse.png")


def _write_npz(samples: Tensor, labels: list[int], path: Path) -> None:
    """Write arrays to an npz file.

    images: (N, H, W, C) uint8, from `samples` (N, C, H, W); or points: (N, 2) float32. labels: (N,) int64, -1 for no
    class.
    """
    arrays = {"labels": np.array(labels, dtype=np.int64)}
    if samples.ndim == 2:
        arrays["points"] = samples.numpy()
    else:
        arrays["images"] = samples.permute(0, 2, 3, 1).numpy()
    size = sum(array.nbytes for array in arrays.values())
    with atomic(path, size) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # mypy confuses the arrays with a flag
