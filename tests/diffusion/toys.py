"""Data whose optimal denoiser is known in closed form, and schedules to test it with."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm_cli.config import Cosine, Linear, Sampler, implementation_of
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Noise, Path, Process
from ddpm_cli.diffusion.samplers import Denoise, Estimate, Step
from ddpm_cli.diffusion.sampling import Guidance, sample
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import Pairs, timestep_pairs

LINEAR = Process(
    path_of(Linear(timesteps=1000, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=False))
)
COSINE = Process(path_of(Cosine(timesteps=1000, s=0.008, max_beta=0.999, zero_terminal_snr=False)))

Solver = Callable[[Denoise, Tensor, Process, Pairs, Noise], Iterator[Step]]

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.10]], dtype=torch.float64)

CENTRES = torch.tensor([[-0.8, 0.2], [0.5, -0.6], [0.6, 0.7]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.15
"""Centres of a mixture of three isotropic Gaussians."""


def steps_of(
    sampler: Sampler, denoiser: Denoiser, x: Tensor, noise: Noise, guidance: Guidance | None = None
) -> Iterator[Step]:
    """Yield the steps of the sampler that a config describes, starting from `x`."""
    pairs = timestep_pairs(denoiser.process, sampler)
    return sample(implementation_of(sampler), pairs, denoiser, x, noise, sampler.thresholding, guidance)


def process_at(logsnr: Tensor, kind: str) -> Process:
    """Return the process of a path, vp, edm or flow, whose timesteps have the log-SNRs (T,), the largest one first."""
    ratio = (-logsnr.double() / 2).exp()  # sigma / signal
    signal = {"vp": (1 + ratio**2).rsqrt(), "edm": torch.ones_like(ratio), "flow": 1 / (1 + ratio)}[kind]
    return Process(Path(signal, signal * ratio))


def all_pairs(process: Process) -> Pairs:
    """Return the steps from each timestep to the one before, without the last one to the data."""
    return [(t, t - 1) for t in range(process.timesteps - 1, 0, -1)]


def gaussian_denoiser(process: Process, mean: Tensor = MEAN) -> Denoise:
    """Return E[x0 | x_t] for x0 ~ N(mean, COVARIANCE), the optimum that a network could learn."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        signal, sigma = process.amplitudes(t)
        total = signal**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
        gain = signal * COVARIANCE @ torch.linalg.inv(total)
        return Estimate(mean + (x_t - signal * mean) @ gain.T)

    return denoise


def mixture_denoiser(process: Process) -> Denoise:
    """Return E[x0 | x_t] of the mixture: the mean given each centre, weighted by its posterior probability."""

    def denoise(x_t: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        signal, sigma = process.amplitudes(t)
        total = signal**2 * SPREAD**2 + sigma**2
        off = x_t[:, None] - signal * CENTRES
        logits = SHARES.log() - (off**2).sum(-1) / (2 * total)
        means = CENTRES + signal * SPREAD**2 / total * off
        return Estimate((logits.softmax(1)[..., None] * means).sum(1))

    return denoise


def mixture_draws(count: int) -> Tensor:
    """Return `count` points of the mixture, (count, 2)."""
    generator = torch.Generator().manual_seed(1)
    which = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    return CENTRES[which] + SPREAD * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def moments_of(solve: Solver, process: Process, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of the samples of Gaussian data, without drawing any.

    Both are exact, because each step is affine in x and the noise. The mean is the sample without noise. For data of
    mean 0, x is a sum of 2x2 matrices times the noises drawn so far, on which the sampler acts row by row.
    """
    start = torch.zeros(1, 2, dtype=torch.float64)
    *_, last = solve(gaussian_denoiser(process), start, process, pairs, lambda: start)
    calls = itertools.count(1)

    def noise() -> Tensor:
        unit = torch.zeros(len(pairs) + 2, 2, 2, dtype=torch.float64)
        unit[next(calls)] = torch.eye(2)
        return unit

    first = torch.zeros(len(pairs) + 2, 2, 2, dtype=torch.float64)
    first[0] = process.amplitudes(pairs[0][0])[1] * torch.eye(2)
    *_, spread = solve(gaussian_denoiser(process, torch.zeros_like(MEAN)), first, process, pairs, noise)
    return last.x[0], torch.einsum("kij,kil->jl", spread.x, spread.x)


def mixture_moments() -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of the mixture."""
    mean = SHARES @ CENTRES
    off = CENTRES - mean
    return mean, (SHARES[:, None] * off).T @ off + SPREAD**2 * torch.eye(2, dtype=torch.float64)
