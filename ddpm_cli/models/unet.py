"""The U-Net of the annotated diffusion model, after Phil Wang's, in any size."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ddpm_cli.config import UNetOptions, implements
from ddpm_cli.models.layers import (
    Embedding,
    GroupNorm,
    WeightStandardizedConv2d,
    attention_layer,
    recomputable,
    set_recompute,
)


class StandardizedConvBlock(nn.Module):
    """Weight-standardised 3x3 convolution, group norm, scale and shift, SiLU."""

    def __init__(self, dim: int, dim_out: int, groups: int) -> None:
        super().__init__()
        self.conv = WeightStandardizedConv2d(dim, dim_out, 3, padding=1)
        self.norm = GroupNorm(groups, dim_out)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = torch.addcmul(shift, x, scale + 1)
        return self.act(x)


class ResidualBlock(nn.Module):
    """Two convolution blocks and a residual connection; the embedding scales and shifts the first."""

    def __init__(self, dim: int, dim_out: int, emb_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, 2 * dim_out))
        self.block1 = StandardizedConvBlock(dim, dim_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.block2 = StandardizedConvBlock(dim_out, dim_out, groups)
        self.residual = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    @recomputable
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.block1(x, (scale, shift))
        return self.block2(self.dropout(h)) + self.residual(x)


class Level(nn.Module):
    """The residual blocks and the attention of one resolution, on the way down or up."""

    def __init__(self, blocks: list[nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention


class DownLevel(Level):
    """Each block appends its output to the skip connections, the last one after the attention."""

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(x, emb)
            skips.append(x)
        skips[-1] = self.attention(x)
        return skips[-1]


class UpLevel(Level):
    """Each block takes a skip connection as additional channels."""

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.attention(x)


class Middle(nn.Module):
    """Block, full attention, block, at the lowest resolution."""

    def __init__(self, block1: nn.Module, attention: nn.Module, block2: nn.Module) -> None:
        super().__init__()
        self.block1 = block1
        self.attention = attention
        self.block2 = block2

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x, emb)), emb)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU}
"""Activations of the embedding of t."""


@implements(UNetOptions)
class UNet(nn.Module):
    """The U-Net of "The Annotated Diffusion Model".

    Args of forward:
        x: (B, in_channels, H, W), with H and W divisible by patch_size * 2**(levels - 1).
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
        head_dim: int,
        dropout: float,
        time_scale: float,
        patch_size: int,
        time_activation: str = "silu",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        patch, emb_dim = patch_size, 4 * width
        block = partial(ResidualBlock, emb_dim=emb_dim, groups=groups, dropout=dropout)
        attend = partial(attention_layer, heads=heads, head_dim=head_dim)
        dims = [width * multiplier for multiplier in multipliers]
        ins = [width, *dims[:-1]]  # on the way down a level has the width of its input, as in the text
        last = len(dims) - 1
        self.embedding = Embedding(width, emb_dim, time_scale, classes, activation=ACTIVATIONS[time_activation])
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(in_channels * patch**2, width, 1))

        self.downs = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        for i, (dim_in, dim, kind) in enumerate(zip(ins, dims, attention, strict=True)):
            self.downs.append(DownLevel([block(dim_in, dim_in) for _ in range(blocks)], attend(kind, dim_in)))
            self.downsamples.append(_downsample(dim_in, dim) if i < last else _same(dim_in, dim))
            self.ups.insert(0, UpLevel([block(dim + dim_in, dim) for _ in range(blocks)], attend(kind, dim)))
            self.upsamples.insert(0, _upsample(dim, dim_in) if i > 0 else _same(dim, dim_in))
        self.middle = Middle(block(dims[-1], dims[-1]), attend("full", dims[-1]), block(dims[-1], dims[-1]))

        self.final = block(2 * width, width)
        self.head = nn.Sequential(nn.Conv2d(width, out_channels * patch**2, 1), nn.PixelShuffle(patch))
        if gradient_checkpointing:
            set_recompute(self)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y)
        # Convolutions are fastest in channels_last, which torch does not infer from images with a single channel.
        x = stem = self.stem(x).contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, downsample in zip(self.downs, self.downsamples, strict=True):
            x = downsample(level(x, emb, skips))
        x = self.middle(x, emb)
        for level, upsample in zip(self.ups, self.upsamples, strict=True):
            x = upsample(level(x, emb, skips))
        return self.head(self.final(torch.cat([x, stem], dim=1), emb))


def _same(dim: int, dim_out: int) -> nn.Module:
    return nn.Conv2d(dim, dim_out, 3, padding=1)


def _downsample(dim: int, dim_out: int) -> nn.Module:
    """Halve the resolution without dropping pixels (Sunkara & Luo 2022, arXiv:2208.03641)."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * dim, dim_out, 1))


def _upsample(dim: int, dim_out: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim, dim_out, 3, padding=1))
