"""Edit given images with a trained denoiser: interpolate between two, fill a hole."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Noise, Process
from ddpm_cli.diffusion.samplers import Step, ancestral_step
from ddpm_cli.diffusion.sampling import Guidance, estimator
from ddpm_cli.diffusion.timesteps import Pairs


def mix_noised(process: Process, a: Tensor, b: Tensor, shares: Tensor, t: int, noise: Noise) -> Tensor:
    """Return mixtures (B, C, H, W) of two images that are noised to t (Ho et al. 2020, section 4.4).

    Args:
        a, b: (C, H, W) in [-1, 1].
        shares: (B,) of b; 0 is a and 1 is b.
        t: a timestep; the larger it is, the freer is what the denoiser makes of a mixture.
        noise: returns (B, C, H, W), the same for each mixture, so that they differ by their share only.
    """
    at = torch.full((len(shares),), t, device=a.device)
    eps = noise()
    share = shares.view(-1, 1, 1, 1)
    noised_a, noised_b = (process.q_sample(x.expand_as(eps), at, eps) for x in (a, b))
    return (1 - share) * noised_a + share * noised_b


@torch.no_grad()
def inpaint(
    pairs: Pairs,
    denoiser: Denoiser,
    image: Tensor,
    hole: Tensor,
    resamplings: int,
    x: Tensor,
    noise: Noise,
    thresholding: str,
    guidance: Guidance | None = None,
) -> Iterator[Step]:
    """Fill `hole` by RePaint (Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1); yield a `Step` per network call.

    For each of `pairs`, an ancestral step samples the inside of the hole, and the outside is the image noised to the
    end of the step. Each step is taken `resamplings` times, with x diffused back in between, so that both sides
    agree. The jump length is one stride.

    Args: image: (C, H, W) in [-1, 1]; hole: (1, H, W) bool; x: (B, C, H, W) noise for the first timestep.
    """
    process = denoiser.process
    denoise = estimator(denoiser, thresholding, guidance)
    last_x0 = None
    for t, t_prev in pairs:
        for resampling in range(resamplings):
            step = ancestral_step(denoise, x, process, t, t_prev, noise, last_x0)
            last_x0 = step.x0
            known = image.expand_as(x)
            if t_prev >= 0:
                known = process.q_sample(known, torch.full((len(x),), t_prev, device=x.device), noise())
            less_noisy = torch.where(hole, step.x, known)
            yield Step(t, less_noisy, step.x0)
            if resampling == resamplings - 1:
                x = less_noisy
            elif t_prev >= 0:
                x = process.diffuse(less_noisy, t_prev, t, noise)
            else:
                break  # the data, which no resampling changes
