"""Draw samples with a denoiser: thresholding, guidance and a sampler."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser, Output
from ddpm_cli.diffusion.process import Noise, Process
from ddpm_cli.diffusion.samplers import Denoise, Estimate, Step
from ddpm_cli.diffusion.timesteps import Pairs

DYNAMIC_PERCENTILE = 0.995

Sampler = Callable[[Denoise, Tensor, Process, Pairs, Noise], Iterator[Step]]


@dataclass(frozen=True)
class GuidanceRule:
    """The strength of guidance, and what it leads away from.

    Attributes:
        scale: 1 is no guidance.
        interval: noise levels sigma / signal at which guidance acts (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        rescale: share, in [0, 1], to which the prediction keeps its standard deviation (`rescaled`).
        guide: a worse network, which replaces the unconditional one (Karras et al. 2024, arXiv:2406.02507). It has the
            same process and the same classes, or none.
        guide_has_classes: whether `guide` is conditional.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0
    guide: Denoiser | None = None
    guide_has_classes: bool = False

    def scale_at(self, process: Process, t: int) -> float:
        """Return the scale at timestep t, which is 1 outside of the interval."""
        signal, sigma = process.amplitudes(t)
        level = sigma / signal if signal > 0 else math.inf
        return self.scale if self.interval[0] <= level <= self.interval[1] else 1.0

    def evaluations(self, process: Process, t: int) -> int:
        """Return the number of network evaluations of a sample at timestep t."""
        scale = self.scale_at(process, t)
        return 1 if scale == 1 or (scale == 0 and self.guide is None) else 2


@dataclass(frozen=True)
class Guidance:
    """A rule for a batch.

    Attributes:
        y: (B,) the class of each sample; None for an unconditional network.
        null: the null label.
    """

    y: Tensor | None
    null: int
    rule: GuidanceRule


def hide_labels(y: Tensor, hidden: Tensor, null: int) -> Tensor:
    """Return the labels y (B,) with the null label where `hidden` (B,) is true."""
    return torch.where(hidden, null, y)


def guided_output(denoiser: Denoiser, x_t: Tensor, t: int, guidance: Guidance | None, last_x0: Tensor | None) -> Output:
    """Return the output u + scale (c - u), with c the conditional output, and u the unconditional one or the guide's.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w): 0 is the unconditional
    model, 1 the conditional one, larger values exaggerate the class. It is the same for every prediction, because they
    are linear in each other at a given x_t. The variance is that of the conditional model. Scales other than 0 and 1
    take one network call of twice the batch, or a call of each network.
    """
    at = torch.full((len(x_t),), t, device=x_t.device)
    if guidance is None:
        return denoiser(x_t, at, None, last_x0)
    rule, y = guidance.rule, guidance.y
    scale = rule.scale_at(denoiser.process, t)
    if scale == 1:
        return denoiser(x_t, at, y, last_x0)
    if rule.guide is not None:
        own = denoiser(x_t, at, y, last_x0)
        other = _prediction_of_guide(denoiser, rule.guide, x_t, at, y if rule.guide_has_classes else None, last_x0)
    else:
        assert y is not None
        without = torch.full_like(y, guidance.null)
        if scale == 0:
            return denoiser(x_t, at, without, last_x0)
        twice = None if last_x0 is None else torch.cat([last_x0, last_x0])
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([at, at]), torch.cat([y, without]), twice)
        prediction, other = both.prediction.chunk(2)
        own = Output(prediction, None if both.fraction is None else both.fraction[: len(x_t)])
    guided = other + scale * (own.prediction - other)
    return Output(rescaled(guided, own.prediction, rule.rescale), own.fraction)


def _prediction_of_guide(
    denoiser: Denoiser, guide: Denoiser, x_t: Tensor, at: Tensor, y: Tensor | None, last_x0: Tensor | None
) -> Tensor:
    """Return what `denoiser` would have to predict for the estimates of x0 and eps of `guide`."""
    output = guide(x_t, at, y, last_x0)
    return denoiser.target(guide.x0(output, x_t, at), at, guide.eps(output, x_t, at))


def rescaled(guided: Tensor, own: Tensor, share: float) -> Tensor:
    """Return `guided` with the standard deviation of `own` in each example, to a `share` in [0, 1].

    Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16.
    """
    if share == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    ratio = own.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (share * ratio + 1 - share)


def threshold(x0: Tensor, how: str) -> Tensor:
    """Return x0 (B, ...) unchanged (none), clipped to [-1, 1] (clip), or scaled into that range (dynamic).

    dynamic: with s the 99.5th percentile of |x0| of each example, but at least 1, x0 is clipped to [-s, s] and
    divided by s (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
    """
    match how:
        case "none":
            return x0
        case "clip":
            return x0.clamp(-1, 1)
        case "dynamic":
            s = _quantile(x0.abs().flatten(1), DYNAMIC_PERCENTILE).clamp(min=1)
            s = s.view((-1,) + (1,) * (x0.ndim - 1))
            return x0.clamp(-s, s) / s
    raise ValueError(f"thresholding={how}")


def _quantile(values: Tensor, q: float) -> Tensor:
    """Return the quantile of each row of `values` (B, N), between two of them if need be, as numpy's default.

    torch.quantile does the same, but takes no more than 16 million values.
    """
    ordered, position = values.sort(dim=1).values, q * (values.shape[1] - 1)
    below, above = math.floor(position), math.ceil(position)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)


def estimator(denoiser: Denoiser, thresholding: str, guidance: Guidance | None) -> Denoise:
    """Return the function that samplers call: it returns the guided estimate of x0, thresholded."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        at = torch.full((len(x_t),), t, device=x_t.device)
        output = guided_output(denoiser, x_t, t, guidance, last_x0)
        x0 = threshold(denoiser.x0(output, x_t, at), thresholding)
        return Estimate(x0, output.fraction, denoiser.variance)

    return denoise


@torch.no_grad()
def sample(
    sampler: Sampler,
    pairs: Pairs,
    denoiser: Denoiser,
    x: Tensor,
    noise: Noise,
    thresholding: str,
    guidance: Guidance | None = None,
) -> Iterator[Step]:
    """Yield the steps of `sampler` from `x` to the data, one for each of `pairs`.

    Args:
        x: (B, C, ...) standard normal noise, or data noised to the first timestep of `pairs`.
        thresholding: of the estimates of x0; none, clip or dynamic.
    """
    denoise = estimator(denoiser, thresholding, guidance)
    yield from sampler(denoise, x, denoiser.process, pairs, noise)
