"""What a trained denoiser does to given images: mix two, fill a hole."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm_cli.config import Sampler
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Noise
from ddpm_cli.diffusion.samplers import Step, ancestral_step
from ddpm_cli.diffusion.sampling import Guidance, estimator, sample
from ddpm_cli.diffusion.timesteps import pairs_of


def interpolate(
    sampler: Sampler,
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    shares: Tensor,
    t: int,
    noise: Noise,
    guidance: Guidance | None = None,
) -> Iterator[Step]:
    """Both images diffused to t with one noise, mixed there and denoised (Ho et al. 2020, section 4.4).

    Args:
        a, b: (C, H, W) in [-1, 1]; shares: (B,) of b, 0 is a and 1 is b; t: a timestep, the deeper the freer.
        noise: gives (B, C, H, W); the same for each mix, so that they differ by their share alone.
    """
    at = torch.full((len(shares),), t, device=a.device)
    eps = noise()
    share = shares.view(-1, 1, 1, 1)
    noised_a, noised_b = (denoiser.process.q_sample(x.expand_as(eps), at, eps) for x in (a, b))
    return sample(sampler, denoiser, (1 - share) * noised_a + share * noised_b, noise, guidance, start=t)


@torch.no_grad()
def inpaint(
    sampler: Sampler,
    denoiser: Denoiser,
    image: Tensor,
    hole: Tensor,
    resamplings: int,
    x: Tensor,
    noise: Noise,
    guidance: Guidance | None = None,
) -> Iterator[Step]:
    """Fill `hole` by RePaint (Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1): a `Step` a call.

    At the timesteps of `sampler`, by ancestral steps: outside the hole x is the image as noisy as the step's end,
    inside it is sampled, and each step is taken `resamplings` times, diffused back in between, so that both
    sides agree. (The jump length is one stride.)

    Args: image: (C, H, W) in [-1, 1]; hole: (1, H, W) bool; x: (B, C, H, W) standard normal.
    """
    process = denoiser.process
    denoise = estimator(denoiser, sampler.thresholding, guidance)
    last_x0 = None
    for t, t_prev in pairs_of(sampler, process):
        for resampling in range(resamplings):
            step = ancestral_step(denoise, x, process, t, t_prev, noise, denoiser.variance, last_x0)
            last_x0 = step.x0
            known = image.expand_as(x)
            if t_prev >= 0:
                known = process.q_sample(known, torch.full((len(x),), t_prev, device=x.device), noise())
            less_noisy = torch.where(hole, step.x, known)
            yield Step(t, less_noisy, step.x0)
            if resampling == resamplings - 1:
                x = less_noisy
            elif t_prev >= 0:
                alpha = process.alphas_cumprod[t] / process.alphas_cumprod[t_prev]
                x = alpha**0.5 * less_noisy + (1 - alpha) ** 0.5 * noise()
            else:
                break  # nothing to diffuse back from
