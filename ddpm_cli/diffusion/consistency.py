"""Consistency models: the loss that tunes a diffusion network into one, and its sampler.

A consistency function f maps x_t to the data at the end of the path of the probability flow ODE through x_t, and the
data to themselves (Song et al. 2023, arXiv:2303.01469). Here f is the estimate of x0. The noise level of a timestep is
sigma / signal, which is the sigma of Karras et al. 2022 and the t of the papers, so any path can be used.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.diffusion.objective import Prediction
from ddpm_cli.diffusion.process import Noise, Process
from ddpm_cli.diffusion.samplers import Denoise, Step
from ddpm_cli.diffusion.timesteps import Pairs


def ect(predicted: Prediction, q: float, stages: int, k: float, b: float, c: float | None, weight: str) -> Tensor:
    """Easy Consistency Tuning (Geng et al. 2024, arXiv:2406.14548): w(t, r) d(f(x_t), f(x_r)), r < t.

    Both points have the same x0 and noise, and the gradient flows through f(x_t) only. f is x0 itself at r = -1. With
    the root mean square e of the difference, d is e**2, or the pseudo-Huber distance sqrt(e**2 + c**2) - c. That of
    the paper is sqrt(D) times as large for data of D dimensions, and so is its c.
    """
    denoiser, process, x0, t = predicted.denoiser, predicted.denoiser.process, predicted.x0, predicted.t
    r = lower_timestep(process, t, stage(predicted.progress, stages), q, k, b)
    estimate = denoiser.x0(predicted.output, predicted.x_t, t)
    with torch.no_grad():
        at = r.clamp(min=0)
        x_r = process.q_sample(x0, at, predicted.eps)
        of_network = denoiser.x0(predicted.again(x_r, at), x_r, at)
        is_data = (r < 0).view((-1,) + (1,) * (x0.ndim - 1))
        target = torch.where(is_data, x0, of_network)
    distance = (estimate - target).square().flatten(1).mean(dim=1)
    if c is not None:
        distance = distance / ((distance + c**2).sqrt() + c)  # without the rounding errors of a small difference
    return weights(process, t, r, weight, denoiser.sigma_data) * distance


def stage(progress: Tensor, stages: int) -> Tensor:
    """Return the stage 1, 2, ... of the mapping function, a scalar float tensor, in equal parts of a run."""
    return (progress * stages).floor().clamp(max=stages - 1) + 1


def lower_timestep(process: Process, t: Tensor, stage: Tensor, q: float, k: float, b: float) -> Tensor:
    """Return the timestep r < t (B,) whose noise level is the nearest to that of the mapping function; -1 is the data.

    The level is 1 - n(level) / q**stage of the one of t, with n(level) = 1 + k sigmoid(-b level) (Geng et al. 2024,
    eq. 18), and at least 0. Everything is computed on the device.
    """
    levels = process.sigma / process.signal
    level = levels[t]
    ratio = 1 - q**-stage * (1 + k * torch.sigmoid(-b * level))
    bounds = (levels + F.pad(levels[:-1], (1, 0))) / 2  # halfway from the timestep below, or the data
    nearest = torch.searchsorted(bounds, level * ratio.clamp(min=0)) - 1
    return torch.minimum(nearest, t - 1)


def weights(process: Process, t: Tensor, r: Tensor, weight: str, sigma_data: float) -> Tensor:
    """Return the weights (B,) of the distances between t and r: gap, level or edm, see configs/loss/ect.yaml."""
    levels = process.sigma / process.signal
    match weight:
        case "gap":
            return 1 / (levels[t] - torch.where(r < 0, 0, levels[r.clamp(min=0)]))
        case "level":
            return 1 / levels[t]
        case "edm":
            return process.snr[t] + sigma_data**-2
    raise ValueError(f"weight={weight}")


def consistency(denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1): estimate x0, and noise that to the next level."""
    x0 = None
    for t, t_prev in pairs:
        x0 = x = denoise(x, t, x0).x0
        signal, sigma = process.amplitudes(t_prev)
        if t_prev >= 0:
            x = signal * x0 + sigma * noise()
        yield Step(t, x, x0)
