"""The betas of the forward process, in float64."""

import math

import torch
from torch import Tensor

from ddpm_cli.config import Constant, Cosine, Linear, Quadratic, Schedule, Sigmoid
from ddpm_cli.errors import UserError

LEAST_SIGNAL = 1e-30
"""Of alphas_cumprod, which x0 is found by dividing by the root of."""


def betas_of(schedule: Schedule) -> Tensor:
    """The variances beta_t of q(x_t | x_{t-1}), t in 0..T-1.

    Returns: (T,) float64 on the CPU, in (0, 1); the last is 1 with zero_terminal_snr.

    Raises `UserError` for a schedule that leaves nothing of the image to divide by.

    Linear: Ho et al. 2020, section 4. Cosine: Nichol & Dhariwal 2021, eq. 17. Quadratic and sigmoid: the
    square of a line and a logistic curve from beta_start to beta_end.
    """
    betas = _formula(schedule)
    if schedule.zero_terminal_snr:
        return _zero_terminal_snr(betas)
    left = float(torch.prod(1 - betas))
    if left < LEAST_SIGNAL:
        raise UserError(
            f"schedule={schedule.name}: with timesteps={schedule.timesteps} its alphas_cumprod ends at "
            f"{left:.3g}, which must be at least {LEAST_SIGNAL}; use fewer timesteps or smaller betas"
        )
    return betas


def _formula(schedule: Schedule) -> Tensor:
    match schedule:
        case Linear(timesteps=T, beta_start=start, beta_end=end):
            return schedule.scale * _line(start, end, T)
        case Quadratic(timesteps=T, beta_start=start, beta_end=end):
            return schedule.scale * _line(start**0.5, end**0.5, T) ** 2
        case Sigmoid(timesteps=T, beta_start=start, beta_end=end):
            return schedule.scale * (start + (end - start) * torch.sigmoid(_line(-6, 6, T)))
        case Cosine(timesteps=T, s=s, max_beta=max_beta):
            f = torch.cos((_line(0, 1, T + 1) + s) / (1 + s) * math.pi / 2) ** 2
            return (1 - f[1:] / f[:-1]).clamp(max=max_beta)
        case Constant(timesteps=T, beta=beta):
            return torch.full((T,), beta, dtype=torch.float64)
    raise TypeError(f"no betas for {schedule}")


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """`betas` stretched until alphas_cumprod ends at 0 (Lin et al. 2023, arXiv:2305.08891, Algorithm 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - alphas_cumprod / torch.cat([torch.ones_like(betas[:1]), alphas_cumprod[:-1]])


def _line(start: float, end: float, count: int) -> Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64)
