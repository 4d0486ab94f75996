"""Group norm, what follows it in a residual block, and their gradients, in few passes over the image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018, arXiv:1803.08494), then a scale and a shift of each example, then SiLU.

    The last two where they are asked for. Computed in float32 whatever x is, and returned in the type of x.
    """

    def __init__(self, groups: int, dim: int, eps: float = 1e-5, silu: bool = False) -> None:
        super().__init__(groups, dim, eps)
        self.silu = silu

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """silu((norm(x) * weight + bias) * (1 + scale) + shift). x: (B, C, H, W); scale and shift: (B, C)."""
        gain, offset = self.weight[None], self.bias[None]
        if scale is not None:
            gain, offset = gain * (1 + scale), offset * (1 + scale)
        if shift is not None:
            offset = offset + shift
        size = (*x.shape[:2], 1, 1)
        gain, offset = gain[:, :, None, None].expand(size), offset[:, :, None, None].expand(size)
        return _Normalise.apply(x, gain, offset, self.num_groups, self.eps, self.silu)  # type: ignore[no-any-return]


def _group_mean(x: Tensor, groups: int) -> Tensor:
    """The mean over the pixels and over each group's channels, for each channel: (B, C, H, W) -> (B, C, 1, 1)."""
    means = x.mean(dim=(2, 3)).unflatten(1, (groups, -1))
    return means.mean(dim=2, keepdim=True).expand_as(means).flatten(1)[:, :, None, None]


def _row(channels: Tensor, like: Tensor) -> Tensor:
    """(B, C, 1, 1) -> (B, C, 1, W), repeated in memory as a row of `like` lies there: long loops are fast ones."""
    return torch.empty_like(like[:, :, :1]).copy_(channels)


class _Normalise(torch.autograd.Function):
    """Keeps x alone for its gradient and computes the rest anew: autograd would keep five tensors of its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        h = x.to(gain.dtype, copy=True)
        mean = _group_mean(h, groups)
        h.sub_(_row(mean, h))
        rstd = (_group_mean(h * h, groups) + eps).rsqrt()
        h.mul_(_row(rstd * gain, h)).add_(_row(offset, h))
        ctx.save_for_backward(x, mean, rstd, gain, offset)
        ctx.groups, ctx.silu = groups, silu
        return (F.silu(h, inplace=True) if silu else h).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, gain, offset = ctx.saved_tensors
        h = x.to(gain.dtype, copy=True)
        h.sub_(_row(mean, h)).mul_(_row(rstd, h))
        grad = grad.to(gain.dtype)
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad, torch.addcmul(_row(offset, h), h, _row(gain, h)))
        grad_gain = (grad * h).sum(dim=(2, 3), keepdim=True)
        grad_offset = grad.sum(dim=(2, 3), keepdim=True)
        pixels = x.shape[2] * x.shape[3]
        along = _group_mean(grad_gain * gain, ctx.groups) / pixels
        level = _group_mean(grad_offset * gain, ctx.groups) / pixels
        h.mul_(_row(-rstd * along, h)).sub_(_row(rstd * level, h)).addcmul_(grad, _row(rstd * gain, h))
        return h.to(x.dtype), grad_gain, grad_offset, None, None, None
