"""The U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B), as in their code.

With `heads`, `scale_shift` and the variant improved it is the U-Net of Nichol & Dhariwal 2021 (arXiv:2102.09672,
appendix A), as in their code.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.config import DdpmUNetOptions, implements
from ddpm_cli.models.layers import (
    Embedding,
    GroupNorm,
    Layer,
    attend,
    cosine_first_embedding,
    init_xavier,
    set_recompute,
    sinusoidal_embedding,
)

Levels = Sequence[tuple[int, str]]
"""Channels and kind of attention of each level."""
Norm = Callable[[int], GroupNorm]
"""Returns the group norm of so many channels."""


class Variant(NamedTuple):
    """Details in which the code of one paper differs from that of the other.

    eps: of the norms. padding: of convolutions of stride 2, left, right, top and bottom. xavier: initialise by
    `init_xavier` instead of torch's default.
    """

    sinusoids: Callable[[Tensor, int], Tensor]
    eps: float
    padding: tuple[int, int, int, int]
    xavier: bool


VARIANTS = {
    "ddpm": Variant(sinusoidal_embedding, 1e-6, (0, 1, 0, 1), True),  # the padding SAME of TensorFlow
    "improved": Variant(cosine_first_embedding, 1e-5, (1, 0, 1, 0), False),  # padding=1 of torch: sides are even
}


def _zero(conv: nn.Conv2d) -> None:
    """Set the parameters to zero, so that the residual branch that ends in `conv` starts as the identity."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


class PreNormBlock(nn.Module):
    """Twice group norm, SiLU and a 3x3 convolution, with a residual connection.

    The embedding is added between the two; with `scale_shift` it scales and shifts the second norm instead.
    """

    def __init__(self, dim: int, dim_out: int, *, emb_dim: int, norm: Norm, dropout: float, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = norm(dim)
        self.conv1 = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.emb = nn.Linear(emb_dim, dim_out * (2 if scale_shift else 1))
        self.norm2 = norm(dim_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.residual = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        emb = self.emb(F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + emb)
        return self.conv2(self.dropout(F.silu(h))) + self.residual(x)


class AttentionBlock(nn.Module):
    """Full attention over the pixels, with a residual connection."""

    def __init__(self, dim: int, norm: Norm, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(dim)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.to_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_out(attend(self.to_qkv(self.norm(x)), self.heads))


def _layer(block: Callable[[int, int], nn.Module], dim_in: int, dim: int, kind: str, norm: Norm, heads: int) -> Layer:
    return Layer(block(dim_in, dim), AttentionBlock(dim, norm, heads) if kind == "full" else nn.Identity())


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 with `padding` on the left, on the right, at the top and at the bottom."""

    def __init__(self, dim: int, padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _down_path(
    levels: Levels,
    width: int,
    blocks: int,
    layer: Callable[[int, int, str], Layer],
    downsample: Callable[[int], nn.Module],
) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
    """Return the layers of each level, the downsamplings between them, and the channels of the skip connections."""
    downs, downsamples = nn.ModuleList(), nn.ModuleList()
    skips, dim_in = [width], width
    for i, (dim, kind) in enumerate(levels):
        level = nn.ModuleList()
        for _ in range(blocks):
            level.append(layer(dim_in, dim, kind))
            skips.append(dim)
            dim_in = dim
        downs.append(level)
        if i < len(levels) - 1:
            downsamples.append(downsample(dim))
            skips.append(dim)
    return downs, downsamples, skips


def _up_path(
    levels: Levels, skips: list[int], blocks: int, layer: Callable[[int, int, str], Layer]
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return the layers of each level, which take the skip connections, and the upsamplings between them."""
    ups, upsamples = nn.ModuleList(), nn.ModuleList()
    dim_in = levels[-1][0]
    for i, (dim, kind) in reversed(list(enumerate(levels))):
        level = nn.ModuleList()
        for _ in range(blocks + 1):
            level.append(layer(dim_in + skips.pop(), dim, kind))
            dim_in = dim
        ups.append(level)
        if i > 0:
            upsamples.append(Upsample(dim))
    return ups, upsamples


@implements(DdpmUNetOptions)
class DdpmUNet(nn.Module):
    """The U-Net of Ho et al. 2020 and of Nichol & Dhariwal 2021.

    Args of forward:
        x: (B, in_channels, H, W), with H and W divisible by 2**(levels - 1).
        t: (B,) numbers.
        y: (B,) classes, or None for an unconditional network.

    Returns:
        (B, out_channels, H, W), float32 or the dtype of autocast.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        classes: int,
        *,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[str],
        groups: int,
        heads: int,
        dropout: float,
        time_scale: float,
        scale_shift: bool,
        variant: str = "ddpm",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        details, emb_dim = VARIANTS[variant], 4 * width
        norm = partial(GroupNorm, groups, eps=details.eps)
        block = partial(PreNormBlock, emb_dim=emb_dim, norm=norm, dropout=dropout, scale_shift=scale_shift)
        layer = partial(_layer, block, norm=norm, heads=heads)
        downsample = partial(Downsample, padding=details.padding)
        levels = list(zip([width * multiplier for multiplier in multipliers], attention, strict=True))
        deepest, _ = levels[-1]
        self.embedding = Embedding(width, emb_dim, time_scale, classes, sinusoids=details.sinusoids)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.downs, self.downsamples, skips = _down_path(levels, width, blocks, layer, downsample)
        self.middle = nn.ModuleList([layer(deepest, deepest, "full"), layer(deepest, deepest, "none")])
        self.ups, self.upsamples = _up_path(levels, skips, blocks, layer)
        self.norm = norm(levels[0][0])
        self.head = nn.Conv2d(levels[0][0], out_channels, 3, padding=1)
        self._initialise(details.xavier)
        if gradient_checkpointing:
            set_recompute(self)

    @torch.no_grad()
    def _initialise(self, xavier: bool) -> None:
        if xavier:
            self.apply(init_xavier)
        _zero(self.head)
        for module in self.modules():
            if isinstance(module, PreNormBlock):
                _zero(module.conv2)
            elif isinstance(module, AttentionBlock):
                _zero(module.to_out)
                if xavier:  # queries, keys and values are three layers in the code of Ho et al.
                    for weight in module.to_qkv.weight.chunk(3):
                        nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y)
        x = self.stem(x)
        skips = [x]
        for i, level in enumerate(self.downs):
            for layer in level:  # type: ignore[attr-defined]  # a ModuleList
                x = layer(x, emb)
                skips.append(x)
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
                skips.append(x)
        for layer in self.middle:
            x = layer(x, emb)
        for i, level in enumerate(self.ups):
            for layer in level:  # type: ignore[attr-defined]
                x = layer(torch.cat([x, skips.pop()], dim=1), emb)
            if i < len(self.upsamples):
                x = self.upsamples[i](x)
        return self.head(F.silu(self.norm(x)))
