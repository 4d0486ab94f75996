"""The U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B), as their code builds it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.layers import TimeEmbedding
from ddpm_cli.options import DdpmUNet as DdpmUNetConfig


def _norm(groups: int, dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, dim, eps=1e-6)


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
    """Norm, SiLU, 3x3 convolution, twice; the time embedding is added in between; residual."""

    def __init__(self, dim: int, dim_out: int, emb_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(groups, dim)
        self.conv1 = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.emb = nn.Linear(emb_dim, dim_out)
        self.norm2 = _norm(groups, dim_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.residual = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(F.silu(emb))[:, :, None, None]
        return self.conv2(self.dropout(F.silu(self.norm2(h)))) + self.residual(x)


class AttentionBlock(nn.Module):
    """One head of full attention over the pixels, residual."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(groups, dim)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.to_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.to_out(out.unflatten(2, x.shape[2:]))


class Layer(nn.Module):
    """A residual block, and attention where the level has it."""

    def __init__(self, dim: int, dim_out: int, emb_dim: int, kind: str, groups: int, dropout: float) -> None:
        super().__init__()
        self.block = ResnetBlock(dim, dim_out, emb_dim, groups, dropout)
        self.attention = AttentionBlock(dim_out, groups) if kind == "full" else nn.Identity()

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
    """(x, t) -> output of x's size.

    Args of forward: x: (B, in_channels, H, W), H and W divisible by `config.stride`; t: (B,) integers.
    Returns: (B, out_channels, H, W), float32, or autocast's type.
    """

    def __init__(self, config: DdpmUNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width, last = config.width, len(config.multipliers) - 1
        emb_dim, groups, dropout = 4 * width, config.groups, config.dropout
        dims = [width * multiplier for multiplier in config.multipliers]
        self.time_embedding = TimeEmbedding(width, emb_dim)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)

        self.downs = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        skip_dims, dim_in = [width], width
        for i, (dim, kind) in enumerate(zip(dims, config.attention, strict=True)):
            level = nn.ModuleList()
            for _ in range(config.blocks):
                level.append(Layer(dim_in, dim, emb_dim, kind, groups, dropout))
                skip_dims.append(dim)
                dim_in = dim
            self.downs.append(level)
            if i < last:
                self.downsamples.append(Downsample(dim))
                skip_dims.append(dim)

        self.middle = nn.ModuleList(
            [
                Layer(dims[-1], dims[-1], emb_dim, "full", groups, dropout),
                Layer(dims[-1], dims[-1], emb_dim, "none", groups, dropout),
            ]
        )

        self.ups = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        for i, (dim, kind) in reversed(list(enumerate(zip(dims, config.attention, strict=True)))):
            level = nn.ModuleList()
            for _ in range(config.blocks + 1):
                level.append(Layer(dim_in + skip_dims.pop(), dim, emb_dim, kind, groups, dropout))
                dim_in = dim
            self.ups.append(level)
            if i > 0:
                self.upsamples.append(Upsample(dim))

        self.norm = _norm(groups, width * config.multipliers[0])
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

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.time_embedding(t)
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
