"""Draw samples from a denoiser, with one random stream for each sample."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddpm_cli.checkpoints.loading import Trained
from ddpm_cli.config import Consistency, Ddpm, Ect, GuidanceOptions, Loss, Sampler, check_guidance, implementation_of
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Noise
from ddpm_cli.diffusion.samplers import Step
from ddpm_cli.diffusion.sampling import Guidance, GuidanceRule, sample
from ddpm_cli.diffusion.timesteps import Pairs, check_start, timestep_pairs
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.devices import is_out_of_memory
from ddpm_cli.distributed.turns import in_turns
from ddpm_cli.errors import Failure, UserError
from ddpm_cli.sampling.build import for_inference
from ddpm_cli.sampling.noise import ImageNoise
from ddpm_cli.tracking.terminal import ImageBar

log = logging.getLogger(__name__)
T = TypeVar("T")

FEW = 4
"""With at most 1/FEW of the timesteps, the variance fixed_large is too noisy."""


@dataclass(frozen=True)
class SampleGenerator:
    """A denoiser and a sampler that draw samples of `shape` on a device.

    Attributes:
        classes: number of classes of a conditional network, 0 for an unconditional one.
        rule: the guidance of all samples.
    """

    denoiser: Denoiser
    sampler: Sampler
    shape: tuple[int, ...]
    device: torch.device
    classes: int = 0
    rule: GuidanceRule = GuidanceRule()  # noqa: RUF009, it is frozen

    def guidance(self, labels: Sequence[int]) -> Guidance | None:
        """Return guidance to the classes `labels`, one for each sample; None if there is nothing to guide to."""
        if self.classes == 0 and self.rule.guide is None:
            return None
        y = torch.tensor(labels, device=self.device) if self.classes else None
        return Guidance(y, self.classes, self.rule)

    def steps(self, seed: int, labels: Sequence[int], images: range) -> Iterator[Step]:
        """Yield the steps of the sampler for the samples numbered `images` of `seed`.

        `labels` has the class of every sample, not only of these. The x of the last step are the samples; they do not
        depend on the batch in which they are drawn.
        """
        noise = ImageNoise(seed, images, self.shape, self.device)
        return self.steps_from(self.initial(noise), noise, self.guidance(labels[images.start : images.stop]))

    def initial(self, noise: Noise) -> Tensor:
        """Return the x (B, C, ...) of pure noise that the sampler starts from."""
        return self.denoiser.process.initial_std(self.pairs()[0][0]) * noise()

    def steps_from(
        self, x: Tensor, noise: Noise, guidance: Guidance | None, start: int | None = None
    ) -> Iterator[Step]:
        """Yield the steps of the sampler from x (B, C, ...), which is noise or, with `start`, data noised to there."""
        sampler = implementation_of(self.sampler)
        steps = sample(sampler, self.pairs(start), self.denoiser, x, noise, self.sampler.thresholding, guidance)
        return in_turns(steps, self.device)

    def draw(self, seed: int, labels: Sequence[int], images: range, bar: ImageBar) -> Tensor:
        """Return the samples numbered `images` of `seed`, (B, ...) on the device, and show the progress on `bar`."""
        x, steps = torch.empty(0), len(self.pairs())
        for i, step in enumerate(self.steps(seed, labels, images), start=1):
            x = step.x
            bar.reach(images, i / steps)
        return x

    @property
    def calls(self) -> int:
        """Approximate number of network calls for a batch: some samplers take fewer in the last step."""
        return len(self.pairs()) * self.sampler.calls_per_step

    @property
    def evaluations(self) -> int:
        """Approximate number of network evaluations (NFE) for a sample; guidance takes two in one call."""
        each = [self.rule.evaluations(self.denoiser.process, t) for t, _ in self.pairs()]
        return sum(each) * self.sampler.calls_per_step

    def pairs(self, start: int | None = None) -> Pairs:
        """Return the steps of the sampler as pairs (t, t_prev), from t = `start` if it is given."""
        return timestep_pairs(self.denoiser.process, self.sampler, start)


def generator_of(
    trained: Trained,
    sampler: Sampler | None,
    variance: str | None,
    guidance_scale: float | None,
    sampler_changes: Mapping[str, Any] | None = None,
    guidance: GuidanceOptions | None = None,
    guide: Trained | None = None,
) -> SampleGenerator:
    """Return the sample generator of a checkpoint; None means the sampler, variance or guidance of the run.

    `sampler_changes` are values of the sampler's keys that replace its own. `guide` is a worse network. Raise
    `UserError` if they do not fit the schedule, the data or the network.
    """
    own = trained.config
    sampler = (sampler or own.sampler).changed(sampler_changes or {})
    sampler.check_against(own.schedule, own.dataset)
    check_start(trained.denoiser.process, sampler)
    sampler = sampler.for_data(own.dataset)
    scale = own.guidance_scale if guidance_scale is None else guidance_scale
    check_guidance(scale, own.conditioning, guide is not None)
    rule = _rule(trained, scale, guidance, guide)
    variance = variance or own.variance
    if (variance == "learned_range") != (own.variance == "learned_range"):
        raise UserError(
            f"variance={variance}: this network was trained with variance={own.variance}; learned_range is for those "
            "trained with it, and they for it"
        )
    warn_of_few_steps(sampler, variance, own.schedule.timesteps)
    warn_of_sampler(sampler, own.loss)
    denoiser = for_inference(replace(trained.denoiser, variance=variance), trained.device)
    return SampleGenerator(denoiser, sampler, own.dataset.shape, trained.device, len(trained.classes), rule)


def _rule(trained: Trained, scale: float, guidance: GuidanceOptions | None, guide: Trained | None) -> GuidanceRule:
    """Return the guidance rule of the run with what `guidance` changes."""
    own = trained.config.guidance
    if guidance is not None:
        guidance.check_has_effect(scale)
        values = {name: getattr(own if getattr(guidance, name) is None else guidance, name) for name in vars(own)}
        own = GuidanceOptions(**values)
    rule = GuidanceRule(scale, own.bounds(), own.rescale or 0.0)
    if guide is None:
        return rule
    check_guide(trained, guide)
    return replace(rule, guide=for_inference(guide.denoiser, trained.device), guide_has_classes=bool(guide.classes))


def check_guide(trained: Trained, guide: Trained) -> None:
    """Raise `UserError` unless the estimates of `guide` can be compared with those of `trained`."""
    ours, theirs, key = trained.config, guide.config, f"guidance.guide={guide.path}"
    if ours.dataset.shape != theirs.dataset.shape:
        shapes = ["x".join(map(str, config.dataset.shape)) for config in (theirs, ours)]
        raise UserError(f"{key}: its images are {shapes[0]}, those of ckpt are {shapes[1]}; name a network for these")
    if ours.schedule != theirs.schedule:
        raise UserError(f"{key}: has another schedule than ckpt; name a network that was trained with the same")
    if guide.classes not in ([], trained.classes):
        raise UserError(f"{key}: has other classes than ckpt; name a network with the same classes, or without")


def batches_with_oom_retry(n: int, batch_size: int, work: Callable[[range], T]) -> Iterator[tuple[range, T]]:
    """Call `work` on 0..n-1 in batches; yield (batch, result) with results on the CPU.

    Each of several processes works on its own batches. Rank 0 receives the results of all, the others none. If a
    batch does not fit into the memory of the device, its size is halved, which is logged once. Raise `Failure` if a
    batch of one does not fit.
    """
    first, asked = 0, batch_size
    while first < n:
        of_all = range(first, min(first + batch_size * collectives.world_size(), n))
        own = of_all[collectives.shard_slice(len(of_all))]
        made = _made(work, own or of_all[:1])  # idle processes work too, since a sharded network needs all of them
        if any(collectives.all_reduce_max(made is None)):
            batch_size = -(-len(of_all) // collectives.world_size()) // 2
            if batch_size == 0:
                raise Failure("batch_size=1: takes more memory than the device has free")
            continue
        if batch_size < asked:
            log.warning(
                "out of memory with batches of %d; continuing with %d, the results are the same", asked, batch_size
            )
            asked = batch_size
        for images, its in collectives.gather_object((own, made)):
            if images and its is not None:
                yield images, its[0]
        first = of_all.stop


def _made(work: Callable[[range], T], images: range) -> tuple[T] | None:
    """Return the result of `work` in a tuple, or None if it ran out of memory."""
    try:
        return (work(images),)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def cycle_labels(n: int, wanted: Sequence[int]) -> list[int]:
    """Return the labels of n samples, cycling through `wanted`, so that sample i has the same label for every n."""
    return [wanted[i % len(wanted)] for i in range(n)]


def warn_of_few_steps(sampler: Sampler, variance: str, timesteps: int) -> None:
    """Log a warning if ancestral steps are few and have the larger variance (Nichol & Dhariwal 2021, figure 8)."""
    steps = sum(sampler.sections) if sampler.sections else sampler.steps or timesteps
    if isinstance(sampler, Ddpm) and variance == "fixed_large" and FEW * steps <= timesteps:
        log.warning(
            "variance=fixed_large with %d of %d steps leaves much noise in the samples; use variance=fixed_small, "
            "sampler=ddim or more steps",
            steps,
            timesteps,
        )


def warn_of_sampler(sampler: Sampler, loss: Loss) -> None:
    """Log a warning if the sampler does not suit the loss that the network was trained with."""
    consistent = isinstance(loss, Ect)
    if consistent and not isinstance(sampler, Consistency):
        log.warning("sampler=%s: this network is a consistency model; use sampler=consistency", sampler.name)
    if isinstance(sampler, Consistency) and not consistent:
        log.warning(
            "sampler=consistency: this network was trained with loss=%s, so samples will be blurred; tune it by "
            "ddpm-train init=... loss=ect first",
            loss.name,
        )
