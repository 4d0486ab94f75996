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
class Guidance:
    """Classes to guide to (`guided_output`).

    Attributes:
        y: (B,) the class of each sample.
        null: the null label.
        scale: strength of the guidance.
    """

    y: Tensor
    null: int
    scale: float = 1.0


def hide_labels(y: Tensor, hidden: Tensor, null: int) -> Tensor:
    """Return the labels y (B,) with the null label where `hidden` (B,) is true."""
    return torch.where(hidden, null, y)


def guided_output(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor, null: int, scale: float, last_x0: Tensor | None
) -> Output:
    """Return the output u + scale (c - u), with u the unconditional and c the conditional output.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w): 0 is the unconditional
    model, 1 the conditional one, larger values exaggerate the class. It is the same for eps, x0 and v, because these
    are linear in each other at a given x_t. The variance is that of the conditional model. Scales other than 0 and 1
    take one network call of twice the batch.
    """
    without = torch.full_like(y, null)
    if scale == 1:
        return denoiser(x_t, t, y, last_x0)
    if scale == 0:
        return denoiser(x_t, t, without, last_x0)
    twice = None if last_x0 is None else torch.cat([last_x0, last_x0])
    output = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, without]), twice)
    conditional, unconditional = output.prediction.chunk(2)
    fraction = None if output.fraction is None else output.fraction[: len(x_t)]
    return Output(unconditional + scale * (conditional - unconditional), fraction)


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
        if guidance is None:
            output = denoiser(x_t, at, None, last_x0)
        else:
            output = guided_output(denoiser, x_t, at, guidance.y, guidance.null, guidance.scale, last_x0)
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
