"""Examples from a denoiser, one seed each."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.checkpoints.loading import Trained
from ddpm_cli.config import Ddpm, Sampler, check_guidance
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.samplers import Step
from ddpm_cli.diffusion.sampling import Guidance, sample
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Failure, UserError

log = logging.getLogger(__name__)
Made = TypeVar("Made")

AT_ONCE = 1024
"""Numbers drawn by a call of a generator, at least."""

FEW = 4
"""Of this share of the timesteps or fewer, fixed_large is too noisy."""


class ImageNoise:
    """Standard normal noise in which image i of a seed always gets the same, whatever is drawn beside it.

    Drawn on the CPU, so that it is the same on every device; of small examples for several calls at once.
    """

    def __init__(self, seed: int, images: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators = [rng.generator(seed, "image", i) for i in images]
        self.shape = (max(1, AT_ONCE // math.prod(shape)), *shape)
        self.device = device
        self._ahead: Iterator[Tensor] = iter(())

    def __call__(self) -> Tensor:
        """(images, *shape) float32 on the device, anew at each call."""
        if (noise := next(self._ahead, None)) is None:
            drawn = [torch.randn(self.shape, generator=generator) for generator in self.generators]
            self._ahead = iter(torch.stack(drawn, dim=1))
            noise = next(self._ahead)
        return noise.to(self.device)


@dataclass(frozen=True)
class SampleGenerator:
    """What draws examples of `shape`: a denoiser and a sampler on a device.

    `classes`: how many the denoiser is told of, 0 for none; `guidance_scale`: how strongly it heeds them.
    """

    denoiser: Denoiser
    sampler: Sampler
    shape: tuple[int, ...]
    device: torch.device
    classes: int = 0
    guidance_scale: float = 1.0

    def guidance(self, labels: Sequence[int]) -> Guidance | None:
        """Towards the classes `labels`, one an example; nothing where the denoiser is not told any."""
        if self.classes == 0:
            return None
        return Guidance(torch.tensor(labels, device=self.device), self.classes, self.guidance_scale)

    def steps(self, seed: int, labels: Sequence[int], images: range) -> Iterator[Step]:
        """The steps to examples `images` of `seed`, whose classes are among `labels`, one for each example of all.

        The examples are the last step's x. They do not depend on which others are drawn beside them.
        """
        noise = ImageNoise(seed, images, self.shape, self.device)
        guidance = self.guidance(labels[images.start : images.stop])
        return sample(self.sampler, self.denoiser, noise(), noise, guidance)


def generator_of(
    trained: Trained, sampler: Sampler | None, variance: str | None, guidance_scale: float | None
) -> SampleGenerator:
    """What draws from a checkpoint: the run's own sampler, variance and guidance where None is given.

    Raises `UserError` where its schedule, data or network take no such ones.
    """
    own = trained.config
    sampler = sampler or own.sampler
    sampler.check_against(own.schedule, own.dataset)
    scale = own.guidance_scale if guidance_scale is None else guidance_scale
    check_guidance(scale, own.conditioning)
    variance = variance or own.variance
    if (variance == "learned_range") != (own.variance == "learned_range"):
        raise UserError(
            f"variance={variance}: this network was trained with variance={own.variance}; learned_range is for those "
            "trained with it, and they for it"
        )
    warn_of_few_steps(sampler, variance, own.schedule.timesteps)
    denoiser = replace(trained.denoiser, variance=variance)
    return SampleGenerator(denoiser, sampler, own.dataset.shape, trained.device, len(trained.classes), scale)


def batches_with_oom_retry(n: int, batch_size: int, work: Callable[[range], Made]) -> Iterator[tuple[range, Made]]:
    """`work` on 0..n-1, `batch_size` at a time: on which, and what it made of them, on the CPU.

    Several processes do a batch each, and all get what all made. Where a device lacks the memory for a batch, it is
    halved and tried again, which is said once. Raises `Failure` where a batch of one is too much.
    """
    first, asked = 0, batch_size
    while first < n:
        of_all = range(first, min(first + batch_size * collectives.world_size(), n))
        own = of_all[collectives.shard_slice(len(of_all))]
        made = _made(work, own or of_all[:1])  # idle processes work too: a network in parts needs them all
        if collectives.all_reduce_max(made is None):
            batch_size = -(-len(of_all) // collectives.world_size()) // 2
            if batch_size == 0:
                raise Failure("batch_size=1: takes more memory than the device has free")
            continue
        if batch_size < asked:
            log.warning(
                "out of memory with batches of %d; going on with %d, the results are the same", asked, batch_size
            )
            asked = batch_size
        for images, its in collectives.all_gather_object((own, made)):
            if images and its is not None:
                yield images, its[0]
        first = of_all.stop


def _made(work: Callable[[range], Made], images: range) -> tuple[Made] | None:
    """What `work` makes of `images`, or None where there is not the memory for it."""
    try:
        return (work(images),)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return None


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception of its own; MPS and the CPU say it in words."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def cycle_labels(n: int, wanted: Sequence[int]) -> list[int]:
    """The labels of n examples: those `wanted` in turn, so that example i has the same whatever n is."""
    return [wanted[i % len(wanted)] for i in range(n)]


def warn_of_few_steps(sampler: Sampler, variance: str, timesteps: int) -> None:
    """Say so where ancestral steps are few and their variance the largest (Nichol & Dhariwal 2021, figure 8)."""
    steps = sum(sampler.sections) if sampler.sections else sampler.steps or timesteps
    if isinstance(sampler, Ddpm) and variance == "fixed_large" and FEW * steps <= timesteps:
        log.warning(
            "variance=fixed_large with %d of %d steps leaves much noise in the samples; use variance=fixed_small, "
            "sampler=ddim or more steps",
            steps,
            timesteps,
        )
