"""Data whose optimal denoiser is known in closed form, and schedules to test it with."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm_cli.config import Cosine, Linear, Sampler, implementation_of
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Noise, Process
from ddpm_cli.diffusion.samplers import Denoise, Estimate, Step
from ddpm_cli.diffusion.sampling import Guidance, sample
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import Pairs, timestep_pairs

LINEAR = Process(
    path_of(Linear(timesteps=1000, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=False))
)
COSINE = Process(path_of(Cosine(timesteps=1000, s=0.008, max_beta=0.999, zero_terminal_snr=False)))

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.10]], dtype=torch.float64)

CENTRES = torch.tensor([[-0.8, 0.2], [0.5, -0.6], [0.6, 0.7]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.15
"""Centres of a mixture of three isotropic Gaussians."""


def pairs_of(sampler: Sampler, process: Process, start: int | None = None) -> Pairs:
    """Return the steps of the sampler of a config."""
    return timestep_pairs(process, sampler.steps, sampler.sections, sampler.spacing, start)


def steps_of(
    sampler: Sampler, denoiser: Denoiser, x: Tensor, noise: Noise, guidance: Guidance | None = None
) -> Iterator[Step]:
    """Yield the steps of the sampler that a config describes, starting from `x`."""
    pairs = pairs_of(sampler, denoiser.process)
    return sample(implementation_of(sampler), pairs, denoiser, x, noise, sampler.thresholding, guidance)


def gaussian_denoiser(process: Process) -> Denoise:
    """Return E[x0 | x_t] for x0 ~ N(MEAN, COVARIANCE), the optimum that a network could learn."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        ac = process.alphas_cumprod[t]
        total = ac * COVARIANCE + (1 - ac) * torch.eye(2, dtype=torch.float64)
        gain = math.sqrt(ac) * COVARIANCE @ torch.linalg.inv(total)
        return Estimate(MEAN + (x_t - math.sqrt(ac) * MEAN) @ gain.T)

    return denoise


def mixture_denoiser(process: Process) -> Denoise:
    """Return E[x0 | x_t] of the mixture: the mean given each centre, weighted by its posterior probability."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        ac = process.alphas_cumprod[t]
        total = ac * SPREAD**2 + 1 - ac
        off = x_t[:, None] - math.sqrt(ac) * CENTRES
        logits = SHARES.log() - (off**2).sum(-1) / (2 * total)
        means = CENTRES + math.sqrt(ac) * SPREAD**2 / total * off
        return Estimate((logits.softmax(1)[..., None] * means).sum(1))

    return denoise


def mixture_moments() -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of the mixture."""
    mean = SHARES @ CENTRES
    off = CENTRES - mean
    return mean, (SHARES[:, None] * off).T @ off + SPREAD**2 * torch.eye(2, dtype=torch.float64)
