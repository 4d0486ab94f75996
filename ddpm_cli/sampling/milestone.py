"""Milestones of a run and their pictures: a grid of samples, and at the end a film."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_cli.config import Train
from ddpm_cli.images.samples import picture
from ddpm_cli.sampling.film import evenly, frames, shown
from ddpm_cli.sampling.sample_generator import SampleGenerator, batches_with_oom_retry, cycle_labels
from ddpm_cli.tracking.terminal import ImageBar


@dataclass(frozen=True)
class Milestone:
    """A milestone of a run, after its checkpoint and its samples were written.

    Attributes:
        number: of the milestone, from 1 up.
        step: number of training steps done.
        steps: length of the run.
        loss: mean loss since the last row of metrics.csv.
        folder: the run folder.
        checkpoint, samples: the files of this step.
    """

    number: int
    step: int
    steps: int
    loss: float
    folder: Path
    checkpoint: Path
    samples: Path


def draw_milestone(
    generator: SampleGenerator, classes: Sequence[str], train: Train, filmed: bool, after_step: Callable[[], None]
) -> tuple[list[Image], Image] | None:
    """Return the frames of the film, empty unless `filmed`, and the grid of `train.samples` samples.

    Each of several processes draws a share; return None on ranks other than 0. `after_step` is called after each step
    of the sampler.
    """
    labels = cycle_labels(train.samples, range(max(1, len(classes))))
    names = [classes[label] for label in labels] if classes else None
    drawn = _draw_samples(generator, labels, train, filmed, after_step)
    if not drawn:
        return None
    films, samples = zip(*drawn, strict=True)
    recorded, x = [torch.cat(parts) for parts in zip(*films, strict=True)], torch.cat(samples)
    return [picture(some, names and names[: len(some)]) for some in recorded], picture(x, names)


def _draw_samples(
    generator: SampleGenerator, labels: Sequence[int], train: Train, filmed: bool, after_step: Callable[[], None]
) -> list[tuple[list[Tensor], Tensor]]:
    """Draw samples (n, C, ...), one for each of `labels`.

    Returns:
        For each batch, on rank 0: the first samples after some steps of the sampler, if `filmed`, and all samples
        after the last one.
    """
    steps = len(generator.pairs())
    recorded = evenly(steps, frames(generator.shape)) if filmed else []
    last = shown(generator.shape, len(labels))

    def draw(images: range) -> tuple[list[Tensor], Tensor]:
        x, seen = torch.empty(0), []
        for i, step in enumerate(generator.steps(train.seed, labels, images), start=1):
            x = step.x
            bar.reach(images, i / steps)
            if i in recorded:
                seen.append(x[: max(0, last - images.start)].cpu())
            after_step()
        return seen, x.cpu()

    with ImageBar(len(labels), "samples") as bar:
        return [both for _, both in batches_with_oom_retry(len(labels), train.batch_size, draw)]
