"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser, Output


def hide_labels(y: Tensor, hidden: Tensor, null: int) -> Tensor:
    """The labels y (B,) with `null`, which means no label, where `hidden` (B,) is true."""
    return torch.where(hidden, null, y)


def guided_output(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor, null: int, scale: float, last_x0: Tensor | None
) -> Output:
    """The output without a class, and `scale` times the way from there to the output with one.

    That is eq. 6 with scale = 1 + w: 0 is the unconditional model, 1 the conditional one, above 1 exaggerates.
    Both are linear in eps, x0 or v alike, which at a given x_t are linear in each other. The variance is that
    of the conditional model. One call of the network at scale 0 and 1, one of twice the batch elsewhere.
    """
    without = torch.full_like(y, null)
    if scale == 1:
        return denoiser(x_t, t, y, last_x0)
    if scale == 0:
        return denoiser(x_t, t, without, last_x0)
    twice = None if last_x0 is None else torch.cat([last_x0, last_x0])
    output = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([y, without]), twice)
    conditional, unconditional = output.prediction.chunk(2)
    fraction = None if output.fraction is None else output.fraction[: len(x_t)]
    return Output(unconditional + scale * (conditional - unconditional), fraction)
