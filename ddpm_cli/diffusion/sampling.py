"""From noise to data: a sampler's config and a denoiser become the steps of a walk."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.config import Ddim, Ddpm, DpmPp2M, Heun, Sampler
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.guidance import guided_output
from ddpm_cli.diffusion.process import Noise
from ddpm_cli.diffusion.samplers import Denoise, Estimate, Step, ddim, ddpm, dpmpp_2m, heun
from ddpm_cli.diffusion.timesteps import pairs_of

DYNAMIC_PERCENTILE = 0.995


@dataclass(frozen=True)
class Guidance:
    """The classes y (B,) wanted, the label `null` that means none, and how strongly (`guided_output`)."""

    y: Tensor
    null: int
    scale: float = 1.0


def threshold(x0: Tensor, how: str) -> Tensor:
    """x0 (B, ...) as it is (none), cut to [-1, 1] (clip), or scaled into it by what it exceeds (dynamic).

    dynamic: of each example the 99.5th percentile s of |x0|, at least 1; x0 is cut to [-s, s] and divided by s
    (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
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
    """What samplers ask: the guided estimate of x0, thresholded."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        at = torch.full((len(x_t),), t, device=x_t.device)
        if guidance is None:
            output = denoiser(x_t, at, None, last_x0)
        else:
            output = guided_output(denoiser, x_t, at, guidance.y, guidance.null, guidance.scale, last_x0)
        return Estimate(threshold(denoiser.x0(output, x_t, at), thresholding), output.fraction)

    return denoise


@torch.no_grad()
def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Tensor,
    noise: Noise,
    guidance: Guidance | None = None,
    start: int | None = None,
) -> Iterator[Step]:
    """Walk `x` to the data as `sampler` says: a `Step` per timestep that it visits.

    x: (B, C, ...), standard normal, or with `start` the noised data of that timestep.
    """
    process = denoiser.process
    denoise = estimator(denoiser, sampler.thresholding, guidance)
    pairs = pairs_of(sampler, process, start)
    match sampler:
        case Ddpm():
            yield from ddpm(denoise, x, process, pairs, noise, denoiser.variance)
        case Ddim(eta=eta):
            yield from ddim(denoise, x, process, pairs, noise, eta)
        case DpmPp2M():
            yield from dpmpp_2m(denoise, x, process, pairs)
        case Heun():
            yield from heun(denoise, x, process, pairs)
        case _:
            raise TypeError(f"no sampler for {sampler}")
