"""The variational bound on the likelihood, term by term, in bits per dimension.

L = L_T + sum of L_t over t = T-1..1 + L_0 (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eq. 4 to 7). Here the term
of timestep t belongs to p(x_{t-1} | x_t), and t = 0 yields the data.
"""

import math

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser, Output
from ddpm_cli.diffusion.process import Process

BITS = 1 / math.log(2)
LEVELS = 255
"""Steps between the levels of an 8-bit image: pixels in [-1, 1] are 2 / LEVELS apart."""


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """Return KL(N(mean1, exp(log_var1)) || N(mean2, exp(log_var2))) of each dimension, in nats."""
    return 0.5 * (
        log_var2 - log_var1 + torch.exp(log_var1 - log_var2) + (mean1 - mean2) ** 2 * torch.exp(-log_var2) - 1
    )


def normal_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return -log N(x; mean, exp(log_var)) of each dimension, in nats."""
    return 0.5 * (math.log(2 * math.pi) + log_var + (x - mean) ** 2 * torch.exp(-log_var))


def discretised_nll(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return -log of the probability that N(mean, exp(log_var)) has on the 8-bit level of x, in nats.

    x is in [-1, 1]; the lowest and the highest level extend to infinity (Ho et al. 2020, eq. 13). It is computed from
    the logarithms of the tail nearer to zero, so that neither values nor gradients vanish far from the mean.
    """
    inverse_std = torch.exp(-0.5 * log_var)
    upper = torch.where(x > 1 - 1 / LEVELS, math.inf, (x - mean + 1 / LEVELS) * inverse_std)
    lower = torch.where(x < -1 + 1 / LEVELS, -math.inf, (x - mean - 1 / LEVELS) * inverse_std)
    mirrored = x > mean
    larger = torch.special.log_ndtr(torch.where(mirrored, -lower, upper))
    smaller = torch.special.log_ndtr(torch.where(mirrored, -upper, lower))
    return -larger - torch.log(-torch.expm1(smaller - larger))


def reverse_term(
    denoiser: Denoiser, output: Output, x0_hat: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, discrete: bool
) -> Tensor:
    """Return the term of p(x_{t-1} | x_t) for each example: (B,) bits per dimension.

    It is KL(q(x_{t-1} | x_t, x0) || p) for t > 0, and -log p(x0 | x_t) at t = 0: the probability of 8-bit levels if the
    data are `discrete`, else a density.

    Args:
        output: of `denoiser` at (x_t, t), for the variance.
        x0_hat: the estimate of x0, for the mean.
    """
    process = denoiser.process
    mean, log_var = process.posterior_mean(x0_hat, x_t, t), denoiser.log_variance(output, x_t, t)
    true_mean = process.posterior_mean(x0, x_t, t)
    true_log_var = process.at(process.log_posterior_variance, t, x0)
    kl = normal_kl(true_mean, true_log_var, mean, log_var)
    nll = (discretised_nll if discrete else normal_nll)(x0, mean, log_var)
    return torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) * BITS


def prior_term(process: Process, x0: Tensor) -> Tensor:
    """Return L_T = KL(q(x_T | x0) || N(0, std**2)) of each example: (B,) bits per dimension.

    std is `Process.initial_std` of the last timestep, 1 for variance-preserving processes.
    """
    signal, sigma = process.amplitudes(process.timesteps - 1)
    std = process.initial_std(process.timesteps - 1)
    log_var = 2 * math.log(sigma / std)
    each = 0.5 * ((signal / std * x0) ** 2 + math.expm1(log_var) - log_var)  # normal_kl would lose these digits
    return each.flatten(1).mean(1) * BITS


@torch.no_grad()
def bound_term(denoiser: Denoiser, x0: Tensor, t: int, eps: Tensor, y: Tensor | None, discrete: bool) -> Tensor:
    """Return an unbiased estimate, for the noise eps, of each example's term of timestep t: (B,) bits per dimension.

    If the data are `discrete`, estimates of x0 are clipped to [-1, 1], as in Nichol & Dhariwal's code. Every mean gives
    a bound, and this one is tighter.
    """
    at = torch.full((len(x0),), t, device=x0.device)
    x_t = denoiser.process.q_sample(x0, at, eps)
    output = denoiser(x_t, at, y)
    x0_hat = denoiser.x0(output, x_t, at)
    if discrete:
        x0_hat = x0_hat.clamp(-1, 1)
    return reverse_term(denoiser, output, x0_hat, x0, x_t, at, discrete)
