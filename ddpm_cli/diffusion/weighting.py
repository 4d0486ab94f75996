"""How much each timestep counts in the loss."""

import torch
from torch import Tensor

from ddpm_cli.config import P2, MinSnr, Unweighted, Weighting


def weights_of(weighting: Weighting, prediction: str, snr: Tensor) -> Tensor:
    """The factors of losses on `prediction` at signal-to-noise ratios `snr`: of snr's shape.

    An error d of x0 is one of sqrt(snr) d of eps and of sqrt(snr + 1) d of v, so a weight w on the squared error
    of x0 is one of w / snr on that of eps and w / (snr + 1) on that of v.

    min_snr: w = min(snr, gamma) (Hang et al. 2023, arXiv:2303.09556, section 3.4). p2: 1 / (k + snr)**gamma on
    the squared error of eps (Choi et al. 2022, arXiv:2204.00227, eq. 8).
    """
    match weighting:
        case Unweighted():
            return torch.ones_like(snr)
        case MinSnr(gamma=gamma):
            on_x0 = snr.clamp(max=gamma)
        case P2(k=k, gamma=gamma):
            on_x0 = snr / (k + snr) ** gamma
        case _:
            raise TypeError(f"no weights for {weighting}")
    return on_x0 / {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[prediction]
