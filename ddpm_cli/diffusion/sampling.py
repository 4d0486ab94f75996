"""Draw samples with a denoiser: thresholding, guidance and a sampler."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.guidance import guided_output
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
            sizes = x0.abs().flatten(1).sort(dim=1).values
            s = sizes[:, round(DYNAMIC_PERCENTILE * (sizes.shape[1] - 1))].clamp(min=1)
            s = s.view((-1,) + (1,) * (x0.ndim - 1))
            return x0.clamp(-s, s) / s
    raise ValueError(f"thresholding={how}")


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
