"""The paths of the forward process, in float64."""

import math

import torch
from torch import Tensor

from ddpm_cli.config import (
    BetaSchedule,
    Constant,
    Cosine,
    EdmPath,
    FlowPath,
    Linear,
    Quadratic,
    Schedule,
    Sigmoid,
    implementation_of,
    implements,
)
from ddpm_cli.diffusion.process import Path, path_of_betas
from ddpm_cli.errors import UserError

LEAST_SIGNAL = 1e-30
"""Smallest alphas_cumprod. The estimate of x0 is divided by its square root."""


def path_of(schedule: Schedule) -> Path:
    """Return the amplitudes of x0 and eps in x_t. Raise `UserError` if the betas leave too little signal."""
    if isinstance(schedule, BetaSchedule):
        return path_of_betas(betas_of(schedule))
    path: Path = implementation_of(schedule)()
    return path


def betas_of(schedule: BetaSchedule) -> Tensor:
    """Return the variances beta_t of q(x_t | x_{t-1}) for t in 0..T-1.

    Returns:
        (T,) float64 on the CPU, in (0, 1); the last one is 1 with zero_terminal_snr.

    Raise `UserError` if alphas_cumprod falls below `LEAST_SIGNAL`.
    """
    betas: Tensor = implementation_of(schedule)()
    if schedule.zero_terminal_snr:
        return _zero_terminal_snr(betas)
    left = float(torch.prod(1 - betas))
    if left < LEAST_SIGNAL:
        raise UserError(
            f"schedule={schedule.name}: with timesteps={schedule.timesteps} its alphas_cumprod ends at "
            f"{left:.3g}, which must be at least {LEAST_SIGNAL}; use fewer timesteps or smaller betas"
        )
    return betas


@implements(Linear)
def linear(timesteps: int, beta_start: float, beta_end: float, scale: float) -> Tensor:
    """Return betas on a line (Ho et al. 2020, section 4), multiplied by `scale`."""
    return scale * _linspace(beta_start, beta_end, timesteps)


@implements(Quadratic)
def quadratic(timesteps: int, beta_start: float, beta_end: float, scale: float) -> Tensor:
    """Return the squares of numbers on a line, multiplied by `scale`."""
    return scale * _linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2


@implements(Sigmoid)
def sigmoid(timesteps: int, beta_start: float, beta_end: float, scale: float) -> Tensor:
    """Return betas on a logistic curve, multiplied by `scale`."""
    return scale * (beta_start + (beta_end - beta_start) * torch.sigmoid(_linspace(-6, 6, timesteps)))


@implements(Cosine)
def cosine(timesteps: int, s: float, max_beta: float) -> Tensor:
    """Return the betas for which alphas_cumprod is a squared cosine (Nichol & Dhariwal 2021, eq. 17)."""
    f = torch.cos((_linspace(0, 1, timesteps + 1) + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


@implements(Constant)
def constant(timesteps: int, beta: float) -> Tensor:
    return torch.full((timesteps,), beta, dtype=torch.float64)


@implements(EdmPath)
def edm(timesteps: int, sigma_min: float, sigma_max: float, rho: float) -> Path:
    """Return the variance-exploding path whose sigma**(1/rho) are on a line (Karras et al. 2022, eq. 5)."""
    sigma = _linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), timesteps) ** rho
    return Path(torch.ones_like(sigma), sigma)


@implements(FlowPath)
def flow(timesteps: int, shift: float) -> Path:
    """Return the straight path from the data to noise, (1 - u) x0 + u eps (Lipman et al. 2022; Liu et al. 2022).

    `shift` moves the levels u towards noise, as Esser et al. 2024 (arXiv:2403.03206), eq. 23, do for large images.
    """
    u = _linspace(1 / timesteps, 1, timesteps)
    whole = 1 + (shift - 1) * u
    return Path((1 - u) / whole, shift * u / whole)  # the signal at T-1 is exactly 0


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return `betas` rescaled so that alphas_cumprod ends at 0 (Lin et al. 2023, arXiv:2305.08891, Algorithm 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - alphas_cumprod / torch.cat([torch.ones_like(betas[:1]), alphas_cumprod[:-1]])


def _linspace(start: float, end: float, count: int) -> Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64)
