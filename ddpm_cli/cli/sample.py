"""ddpm-sample: examples from a checkpoint, which is all it needs."""

import io
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.cli.app import launch, worker_group
from ddpm_cli.cli.overrides import check_checkpoint
from ddpm_cli.config import SampleConfig
from ddpm_cli.distributed.launch import run_distributed

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.sampling.tasks import Task

log = logging.getLogger(__name__)

USAGE = """
ddpm-sample makes images from a checkpoint of ddpm-train.

  ddpm-sample ckpt=outputs/train/fashion_mnist/… n=64
  ddpm-sample ckpt=….pt n=16 sampler=ddim sampler.steps=50 gif=true seed=7 device=cpu
  ddpm-sample ckpt=… class=sneaker guidance_scale=3       of a class-conditional network
  ddpm-sample ckpt=… task=interpolate a=this.png b=that.png
  ddpm-sample ckpt=… task=inpaint image=torn.png mask=hole.png
"""

SPELLING = {"class": "classes"}  # a word that Python keeps for itself
IN_PICTURE = 256
"""Images that grid.png and film.gif show at most."""
MOMENTS = 10
"""Pictures in reverse.png at most."""
Batches: TypeAlias = Iterator[tuple[range, dict[int, "Tensor"]]]


def main() -> None:
    """The console script."""
    launch("sample", USAGE, SampleConfig, check_checkpoint, run, SPELLING)


def run(config: SampleConfig, folder: Path) -> None:
    """Write grid.png, images/ and what else `config` asks for into `folder`, which must be new or empty."""
    run_distributed(draw, (config, folder), worker_group(config))


def draw(config: SampleConfig, folder: Path) -> None:
    """What each of the processes does that share the work; the main one writes."""
    from ddpm_cli.checkpoints.loading import load_trained
    from ddpm_cli.distributed import collectives
    from ddpm_cli.sampling.film import evenly
    from ddpm_cli.sampling.sample_generator import generator_of
    from ddpm_cli.sampling.tasks import plan

    trained = load_trained(config.ckpt, config.weights, config.device, config.precision)
    generator = generator_of(trained, config.sampler, config.variance, config.guidance_scale)
    task = plan(config, generator, trained)
    collectives.on_rank_zero(lambda: new_folder(folder))
    points = len(generator.shape) == 1
    moments = {*evenly(task.steps)} if config.gif else set()
    moments |= {*evenly(task.steps, MOMENTS)} if points else {task.steps}
    batches = _work(task, config.batch_size, moments)
    if collectives.is_rank_zero():
        _save(batches, task, points, config, folder)
    else:
        deque(batches, maxlen=0)


def _save(batches: Batches, task: "Task", points: bool, config: SampleConfig, folder: Path) -> None:
    """Write what comes, and pictures of it."""
    import torch

    from ddpm_cli.images.png_gif import save_gif, save_png, to_uint8
    from ddpm_cli.sampling.film import evenly

    kept: list[Tensor] = []
    films: list[dict[int, Tensor]] = []
    for images, frames in batches:
        last = frames[task.steps]
        if not points:
            _save_images(last, images, folder / "images")
        if config.npz or points:
            kept.append(last if points else to_uint8(last))  # a quarter of the memory
        if points or images.start < IN_PICTURE:
            films.append(frames)
    film = {i: torch.cat([frames[i] for frames in films]) for i in films[0]}
    if not points:
        film = {i: x[:IN_PICTURE] for i, x in film.items()}
    save_png(task.draw(film[task.steps]), folder / "grid.png")
    if config.gif:
        save_gif([task.draw(film[i]) for i in evenly(task.steps)], folder / "film.gif")
    if points:
        _save_points(torch.cat(kept), film, folder)
    if config.npz:
        _save_npz(torch.cat(kept), task.labels, folder / "samples.npz")
    log.info("%d %s in %s", len(task.labels), "points" if points else "images", folder)


def _work(task: "Task", batch_size: int, moments: set[int]) -> Batches:
    """Which examples, and what they are after each step (1 is the first) of `moments`: (B, C, ...) on the CPU."""
    from tqdm import tqdm

    from ddpm_cli.distributed import collectives
    from ddpm_cli.sampling.sample_generator import batches_with_oom_retry

    n = len(task.labels)
    with tqdm(total=n * task.steps, unit="step", disable=collectives.progress_bar_disabled()) as bar:

        def frames_of(images: range) -> dict[int, "Tensor"]:
            frames = {}
            bar.n = images.start * task.steps  # again from here where a batch was too large
            for i, step in enumerate(task.start(images), start=1):
                bar.update(len(images) * collectives.world_size())
                if i in moments:
                    frames[i] = step.x.cpu()
            return frames

        yield from batches_with_oom_retry(n, batch_size, frames_of)


def _save_images(samples: "Tensor", images: range, folder: Path) -> None:
    from ddpm_cli.images.png_gif import save_png, to_image, to_uint8

    folder.mkdir(exist_ok=True)
    for i, pixels in zip(images, to_uint8(samples), strict=True):
        save_png(to_image(pixels), folder / f"{i:05d}.png")


def _save_points(points: "Tensor", film: dict[int, "Tensor"], folder: Path) -> None:
    """points.csv, x and y a line, and reverse.png, the cloud at some of its steps."""
    import numpy as np

    from ddpm_cli.files import write
    from ddpm_cli.images.plots import save_labelled_rows
    from ddpm_cli.sampling.film import evenly

    table = io.BytesIO()
    np.savetxt(table, points.numpy(), fmt="%.6g", delimiter=",", header="x,y", comments="")
    write(folder / "points.csv", table.getvalue())
    moments = evenly(max(film), MOMENTS)
    headings = [f"step {i}" for i in moments]
    save_labelled_rows({"reverse": [film[i] for i in moments]}, headings, folder / "reverse.png")


def _save_npz(samples: "Tensor", labels: list[int], path: Path) -> None:
    """images: (N, H, W, C), of `samples` (N, C, H, W) uint8, or points: (N, 2) float32; labels: (N,) int64, -1
    where there is no class.
    """
    import numpy as np

    from ddpm_cli.files import atomic

    arrays = {"labels": np.array(labels, dtype=np.int64)}
    if samples.ndim == 2:
        arrays["points"] = samples.numpy()
    else:
        arrays["images"] = samples.permute(0, 2, 3, 1).numpy()
    size = sum(array.nbytes for array in arrays.values())
    with atomic(path, size) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # its flag is no array
