"""The training loss (Ho et al. 2020, eq. 14 and Algorithm 1, for any prediction and distance)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config import L1, L2, Huber, Hybrid, Loss, Vlb, Weighting
from ddpm_cli.diffusion.denoiser import Denoiser, Output
from ddpm_cli.diffusion.likelihood import reverse_term
from ddpm_cli.diffusion.weighting import weights_of


def distance(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The mean distance of each example of two (B, ...) tensors: (B,).

    Huber is d**2 / 2 where d = |output - target| is below delta and delta (d - delta / 2) above. Hybrid's is L2.
    """
    match loss:
        case L1():
            each = F.l1_loss(output, target, reduction="none")
        case L2() | Hybrid():
            each = F.mse_loss(output, target, reduction="none")
        case Huber(delta=delta):
            each = F.huber_loss(output, target, reduction="none", delta=delta)
        case _:
            raise TypeError(f"no distance for {loss}")
    return each.flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Objective:
    """The loss that a denoiser is trained on. `discrete`: the data are 8-bit images (for the bound)."""

    denoiser: Denoiser
    loss: Loss
    weighting: Weighting
    discrete: bool = True

    def __call__(
        self, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None = None, self_condition: bool = False
    ) -> Tensor:
        """The loss of each example at given t and noise: (B,) float32 on its device, nothing synchronised.

        vlb: the bound in bits per dimension, T times the term of t. hybrid: the weighted distance, plus
        `vlb_weight` times that bound, which teaches the variance alone (Nichol & Dhariwal 2021, eq. 16).

        Args:
            x0, eps: (B, C, ...) float32; t: (B,) integers in 0..T-1; y: (B,) classes, or None.
            self_condition: show the network its own first estimate of x0, without gradient. Training does so for
                every other batch (Chen et al. 2022, Algorithm 1), so that both cases are learned.
        """
        denoiser, process = self.denoiser, self.denoiser.process
        x_t = process.q_sample(x0, t, eps)
        last_x0 = None
        if self_condition:
            with torch.no_grad():
                last_x0 = denoiser.x0(denoiser(x_t, t, y), x_t, t)
        output = denoiser(x_t, t, y, last_x0)
        if isinstance(self.loss, Vlb):
            return self._bound(output, x0, x_t, t)
        target = process.target(denoiser.prediction, x0, t, eps)
        weights = weights_of(self.weighting, denoiser.prediction, process.snr[t])
        losses = weights * distance(self.loss, output.prediction, target)
        if isinstance(self.loss, Hybrid):
            fixed_mean = Output(output.prediction.detach(), output.fraction)
            losses = losses + self.loss.vlb_weight * self._bound(fixed_mean, x0, x_t, t)
        return losses

    def _bound(self, output: Output, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """T L_t, whose mean over uniform t is the bound without its constant L_T."""
        x0_hat = self.denoiser.x0(output, x_t, t)
        term = reverse_term(self.denoiser, output, x0_hat, x0, x_t, t, self.discrete)
        return self.denoiser.process.timesteps * term
