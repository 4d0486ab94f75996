"""The training loss (Ho et al. 2020, eq. 14 and Algorithm 1, for any prediction, distance and weighting).

A weight w of the squared error of x0 is w / f of the squared error of a prediction, where f is
`Parameterization.per_squared_error_of_x0`: snr for eps and snr + 1 for v.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config import (
    L1,
    L2,
    P2,
    EdmWeighting,
    Huber,
    Hybrid,
    MinSnr,
    SigmoidWeighting,
    Unweighted,
    Vlb,
    implements,
)
from ddpm_cli.diffusion.denoiser import Denoiser, Output
from ddpm_cli.diffusion.likelihood import reverse_term
from ddpm_cli.diffusion.predictions import Edm, Parameterization

Weights = Callable[[Parameterization, Tensor], Tensor]
"""(prediction, snr) -> factors of the losses of a prediction at these signal-to-noise ratios, of snr's shape."""


@implements(Unweighted)
def unweighted(prediction: Parameterization, snr: Tensor) -> Tensor:
    return torch.ones_like(snr)


@implements(MinSnr)
def min_snr(prediction: Parameterization, snr: Tensor, gamma: float) -> Tensor:
    """Return weights min(snr, gamma) of the squared error of x0 (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    return snr.clamp(max=gamma) / prediction.per_squared_error_of_x0(snr)


@implements(P2)
def p2(prediction: Parameterization, snr: Tensor, k: float, gamma: float) -> Tensor:
    """Return weights 1 / (k + snr)**gamma of the squared error of eps (Choi et al. 2022, arXiv:2204.00227, eq. 8)."""
    return snr / (k + snr) ** gamma / prediction.per_squared_error_of_x0(snr)


@implements(EdmWeighting)
def edm(prediction: Parameterization, snr: Tensor, sigma_data: float) -> Tensor:
    """Return weights (sigma**2 + sigma_data**2) / (sigma sigma_data)**2 of the squared error of x0.

    With sigma**2 = 1 / snr (Karras et al. 2022, table 1). They are 1 for prediction=edm.
    """
    return Edm(sigma_data).per_squared_error_of_x0(snr) / prediction.per_squared_error_of_x0(snr)


@implements(SigmoidWeighting)
def sigmoid(prediction: Parameterization, snr: Tensor, bias: float) -> Tensor:
    """Return weights sigmoid(bias - log snr) of the squared error of eps (Hoogeboom et al. 2024)."""
    return snr / (1 + snr * math.exp(-bias)) / prediction.per_squared_error_of_x0(snr)


@dataclass(frozen=True)
class Prediction:
    """What a loss is computed from: the network's output for a batch, and the batch itself.

    Attributes:
        output: the output of `denoiser` at (x_t, t).
        x0, eps, x_t: (B, C, ...) float32.
        t: (B,) integers in 0..T-1.
        weighting: the weights of the timesteps.
        discrete: whether the data are 8-bit images, for the bound.
        progress: the share of the run that is done, in [0, 1), a scalar on the device.
        again: calls the network for these examples at another (x_t, t) with the same classes and the same estimate
            shown. The dropout masks are the same too, if the option of the loss `repeats_dropout`.
    """

    denoiser: Denoiser
    output: Output
    x0: Tensor
    eps: Tensor
    x_t: Tensor
    t: Tensor
    weighting: Weights
    discrete: bool
    progress: Tensor
    again: Callable[[Tensor, Tensor], Output]

    def weighted_mean(self, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the weighted mean distance of each example from its target: (B,).

        `distance` returns the distance of each element of two (B, C, ...) tensors.
        """
        denoiser = self.denoiser
        target = denoiser.target(self.x0, self.t, self.eps)
        weights = self.weighting(denoiser.parameterization, denoiser.process.snr[self.t])
        return weights * distance(self.output.prediction, target).flatten(1).mean(dim=1)

    def bound(self, train_mean: bool) -> Tensor:
        """Return T times the term of t of the variational bound, in bits per dimension: (B,).

        Its mean over uniform t is the bound without its constant L_T. Without `train_mean` the gradient reaches the
        variance only.
        """
        output = self.output if train_mean else Output(self.output.prediction.detach(), self.output.fraction)
        x0_hat = self.denoiser.x0(output, self.x_t, self.t)
        term = reverse_term(self.denoiser, output, x0_hat, self.x0, self.x_t, self.t, self.discrete)
        return self.denoiser.process.timesteps * term


Loss = Callable[[Prediction], Tensor]
"""Returns the loss of each example, (B,) float32."""


@implements(L1)
def l1(predicted: Prediction) -> Tensor:
    return predicted.weighted_mean(lambda output, target: F.l1_loss(output, target, reduction="none"))


@implements(L2)
def l2(predicted: Prediction) -> Tensor:
    return predicted.weighted_mean(lambda output, target: F.mse_loss(output, target, reduction="none"))


@implements(Huber)
def huber(predicted: Prediction, delta: float) -> Tensor:
    """With d = |output - target|: d**2 / 2 where d < delta, and delta (d - delta / 2) elsewhere."""
    return predicted.weighted_mean(lambda output, target: F.huber_loss(output, target, reduction="none", delta=delta))


@implements(Vlb)
def vlb(predicted: Prediction) -> Tensor:
    return predicted.bound(train_mean=True)


@implements(Hybrid)
def hybrid(predicted: Prediction, vlb_weight: float) -> Tensor:
    """L2 trains the mean, and `vlb_weight` times the bound the variance (Nichol & Dhariwal 2021, eq. 16)."""
    return l2(predicted) + vlb_weight * predicted.bound(train_mean=False)


class Repeatable(Protocol):
    """A dropout layer that uses its last mask again while `repeats` is true."""

    repeats: bool


@dataclass(frozen=True)
class Objective:
    """The loss that a denoiser is trained on.

    Attributes:
        discrete: whether the data are 8-bit images.
        dropouts: the layers of the network that repeat their masks in `Prediction.again`.
    """

    denoiser: Denoiser
    loss: Loss
    weighting: Weights
    discrete: bool = True
    dropouts: Sequence[Repeatable] = ()

    def __call__(
        self,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        y: Tensor | None = None,
        self_condition: bool = False,
        augmentation: Tensor | None = None,
        progress: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each example at given t and noise: (B,) float32. The host does not wait for the device.

        Args:
            x0, eps: (B, C, ...) float32.
            t: (B,) integers in 0..T-1.
            y: (B,) classes, or None.
            self_condition: show the network its first estimate of x0, without gradient. Training does so for every
                other batch (Chen et al. 2022, Algorithm 1), so that both cases are learned.
            augmentation: the labels (B, 9) of augmented images, for a network that takes them; or None.
            progress: see `Prediction`; None is the start of the run.
        """
        denoiser = self.denoiser
        if augmentation is not None:
            network = partial(denoiser.network, augmentation=augmentation)  # type: ignore[call-arg]  # not all take it
            denoiser = replace(denoiser, network=network)
        x_t = denoiser.process.q_sample(x0, t, eps)
        last_x0 = None
        if self_condition:
            with torch.no_grad():
                last_x0 = denoiser.x0(denoiser(x_t, t, y), x_t, t)
        output = denoiser(x_t, t, y, last_x0)
        progress = torch.zeros((), device=x0.device) if progress is None else progress
        again = partial(self._again, denoiser, y, last_x0)
        return self.loss(Prediction(denoiser, output, x0, eps, x_t, t, self.weighting, self.discrete, progress, again))

    def _again(self, denoiser: Denoiser, y: Tensor | None, last_x0: Tensor | None, x_t: Tensor, t: Tensor) -> Output:
        """Return the output of the network with the dropout masks of the last call."""
        for dropout in self.dropouts:
            dropout.repeats = True
        output = denoiser(x_t, t, y, last_x0)
        for dropout in self.dropouts:
            dropout.repeats = False
        return output
