"""The U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B), as their code builds it.

With `heads` and `scale_shift` that of Nichol & Dhariwal 2021 (arXiv:2102.09672, appendix A).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.config import DdpmUNet as DdpmUNetConfig
from ddpm_cli.models.layers import Embedding, GroupNorm, attend


def _norm(groups: int, dim: int) -> GroupNorm:
    return GroupNorm(groups, dim, eps=1e-6)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """A residual branch that ends in zeros starts as the identity."""
    nn.init.zeros_(conv.weight)
    return conv


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the embedding is added in between, or scales and shifts; residual."""

    def __init__(self, config: DdpmUNetConfig, dim: int, dim_out: int) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1 = _norm(config.groups, dim)
        self.conv1 = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.emb = nn.Linear(4 * config.width, dim_out * (2 if config.scale_shift else 1))
        self.norm2 = _norm(config.groups, dim_out)
        self.dropout = nn.Dropout(config.dropout)
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
    """Full attention over the pixels, residual."""

    def __init__(self, dim: int, groups: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(groups, dim)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.to_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_out(attend(self.to_qkv(self.norm(x)), self.heads))


class Layer(nn.Module):
    """A residual block, and attention where the level has it."""

    def __init__(self, config: DdpmUNetConfig, dim: int, dim_out: int, kind: str) -> None:
        super().__init__()
        self.block = ResnetBlock(config, dim, dim_out)
        full = kind == "full"
        self.attention = AttentionBlock(dim_out, config.groups, config.heads) if full else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, padded right and below as TensorFlow's SAME does."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DdpmUNet(nn.Module):
    """(x, t, y) -> output of x's size.

    Args of forward: x: (B, in_channels, H, W), H and W divisible by `config.stride`; t: (B,) integers; y: (B,)
    classes, or None for a network without.
    Returns: (B, out_channels, H, W), float32, or autocast's type.
    """

    def __init__(self, config: DdpmUNetConfig, in_channels: int, out_channels: int, classes: int) -> None:
        super().__init__()
        width, last = config.width, len(config.multipliers) - 1
        dims = [width * multiplier for multiplier in config.multipliers]
        self.embedding = Embedding(width, 4 * width, config.time_scale, classes)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)

        self.downs = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        skip_dims, dim_in = [width], width
        for i, (dim, kind) in enumerate(zip(dims, config.attention, strict=True)):
            level = nn.ModuleList()
            for _ in range(config.blocks):
                level.append(Layer(config, dim_in, dim, kind))
                skip_dims.append(dim)
                dim_in = dim
            self.downs.append(level)
            if i < last:
                self.downsamples.append(Downsample(dim))
                skip_dims.append(dim)

        self.middle = nn.ModuleList(
            [Layer(config, dims[-1], dims[-1], "full"), Layer(config, dims[-1], dims[-1], "none")]
        )

        self.ups = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        for i, (dim, kind) in reversed(list(enumerate(zip(dims, config.attention, strict=True)))):
            level = nn.ModuleList()
            for _ in range(config.blocks + 1):
                level.append(Layer(config, dim_in + skip_dims.pop(), dim, kind))
                dim_in = dim
            self.ups.append(level)
            if i > 0:
                self.upsamples.append(Upsample(dim))

        self.norm = _norm(config.groups, width * config.multipliers[0])
        self.head = nn.Conv2d(width * config.multipliers[0], out_channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        self.apply(_init)
        _zero(self.head)
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                _zero(module.conv2)
            elif isinstance(module, AttentionBlock):
                _zero(module.to_out)

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
