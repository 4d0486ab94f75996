"""The training loss (Ho et al. 2020, eq. 14 and Algorithm 1, for any prediction and distance)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.options import L1, L2, Huber, Loss


def distance(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The mean distance of two (B, ...) tensors: a scalar.

    Huber is d**2 / 2 where d = |output - target| is below delta and delta (d - delta / 2) above.
    """
    match loss:
        case L1():
            return F.l1_loss(output, target)
        case L2():
            return F.mse_loss(output, target)
        case Huber(delta=delta):
            return F.huber_loss(output, target, delta=delta)
    raise TypeError(f"no distance for {loss}")


def denoising_loss(
    denoiser: Denoiser, loss: Loss, x0: Tensor, t: Tensor, eps: Tensor, self_condition: bool = False
) -> Tensor:
    """The loss of a batch at given t and noise: a float32 scalar on the batch's device, nothing synchronised.

    Args:
        x0, eps: (B, C, H, W) float32; t: (B,) integers in 0..T-1.
        self_condition: show the network its own first estimate of x0, without gradient. Training does so for
            every other batch (Chen et al. 2022, Algorithm 1), so that both cases are learned.
    """
    x_t = denoiser.process.q_sample(x0, t, eps)
    last_x0 = None
    if self_condition:
        with torch.no_grad():
            last_x0 = denoiser.x0(x_t, t)
    target = denoiser.process.target(denoiser.prediction, x0, t, eps)
    return distance(loss, denoiser.output(x_t, t, last_x0), target)
