"""Weights of the timesteps in the loss.

An error d of x0 is an error sqrt(snr) d of eps and sqrt(snr + 1) d of v. A weight w of the squared error of x0 is
therefore w / snr for eps and w / (snr + 1) for v.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_cli.config import P2, MinSnr, Unweighted, implements

Weights = Callable[[str, Tensor], Tensor]
"""(prediction, snr) -> factors of the losses on eps, x0 or v at these signal-to-noise ratios, of snr's shape."""


@implements(Unweighted)
def unweighted(prediction: str, snr: Tensor) -> Tensor:
    return torch.ones_like(snr)


@implements(MinSnr)
def min_snr(prediction: str, snr: Tensor, gamma: float) -> Tensor:
    """Return weights min(snr, gamma) of the squared error of x0 (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    return snr.clamp(max=gamma) / _per_squared_error_of_x0(prediction, snr)


@implements(P2)
def p2(prediction: str, snr: Tensor, k: float, gamma: float) -> Tensor:
    """Return weights 1 / (k + snr)**gamma of the squared error of eps (Choi et al. 2022, arXiv:2204.00227, eq. 8)."""
    return snr / (k + snr) ** gamma / _per_squared_error_of_x0(prediction, snr)


def _per_squared_error_of_x0(prediction: str, snr: Tensor) -> Tensor:
    """Return the squared error of `prediction` that corresponds to a squared error of x0 of 1."""
    return {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[prediction]
