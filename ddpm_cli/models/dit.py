"""The diffusion transformer of Peebles & Xie 2023 (arXiv:2212.09748), with adaLN-Zero blocks."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_cli.config import DitOptions, implements
from ddpm_cli.models.layers import Embedding, init_xavier, recomputable, set_recompute

TIME_DIM = 256
"""Dimension of the sinusoidal embedding of t, for any width."""
EPS = 1e-6
"""Of all norms."""


def patch_angles(rows: int, columns: int, count: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the column and the row of each patch, times the frequencies base**(-i / count) for i < count.

    Returns:
        Two (rows * columns, count) float32, for the patches row by row.
    """
    frequencies = base ** (-torch.arange(count, device=device, dtype=torch.float32) / count)
    column = torch.arange(columns, device=device)[:, None] * frequencies
    row = torch.arange(rows, device=device)[:, None] * frequencies
    return column.repeat(rows, 1), row.repeat_interleave(columns, dim=0)


def sine_positions(rows: int, columns: int, dim: int, device: torch.device) -> Tensor:
    """Return the fixed embeddings (rows * columns, dim) of the patches: sines and cosines of the column and the row.

    As in the paper's code, the first half is of the column. `dim` is divisible by 4.
    """
    column, row = patch_angles(rows, columns, dim // 4, 10_000, device)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)


def rotations(rows: int, columns: int, head_dim: int, device: torch.device) -> Tensor:
    """Return the cosines and the sines (2, rows * columns, head_dim / 2) by which `rotate` encodes the patches.

    Half of them are of the column and half of the row, at head_dim / 4 frequencies of base 100 each (Heo et al. 2024,
    arXiv:2403.13298, section 3.2, axial frequencies).
    """
    angles = torch.cat(patch_angles(rows, columns, head_dim // 4, 100, device), dim=1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d / 2) of x (B, heads, N, d) by the `rotations` of the N patches.

    The scalar product of a query and a key then depends on the difference of their positions only (Su et al. 2021,
    arXiv:2104.09864, section 3.2).
    """
    cos, sin = by.unbind()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class HeadNorm(nn.RMSNorm):
    """RMS norm of the queries or keys of each head, computed in the type of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class SelfAttention(nn.Module):
    """Softmax attention over the tokens (B, N, C).

    qk_norm: normalise queries and keys, which keeps the logits bounded (Dehghani et al. 2023, arXiv:2302.05442).
    """

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = (HeadNorm(width // heads, EPS) if qk_norm else nn.Identity() for _ in range(2))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = self.norm_q(q), self.norm_k(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        # Unlike the long sequences of pixels in `attend`, patches are few: the fused kernel is not slower on a CPU.
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class AdaptiveNorm(nn.Module):
    """`count` times `width` numbers for each example: scales, shifts and gates that depend on the embedding (B, C).

    They start at zero, so that norms start without scale and shift, and branches with a gate as zero (adaLN-Zero).
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)

    def forward(self, emb: Tensor) -> tuple[Tensor, ...]:
        """Return `count` tensors (B, 1, C)."""
        return self.linear(F.silu(emb))[:, None].chunk(self.count, dim=2)


def normalise(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the layer norm of x, scaled by 1 + `scale` and shifted."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class DitBlock(nn.Module):
    """Attention and a two-layer MLP, each with an adaptive layer norm, a gate and a residual connection."""

    def __init__(self, width: int, heads: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.adaptive = AdaptiveNorm(width, 6)
        self.attention = SelfAttention(width, heads, qk_norm)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    @recomputable
    def forward(self, x: Tensor, emb: Tensor, rotation: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaptive(emb)
        x = x + gate1 * self.dropout(self.attention(normalise(x, shift1, scale1), rotation))
        return x + gate2 * self.dropout(self.mlp(normalise(x, shift2, scale2)))


@implements(DitOptions)
class Dit(nn.Module):
    """The diffusion transformer of Peebles & Xie 2023.

    Different from their code: the frequencies of t end at 1/10000, and its sines come before its cosines; `dropout`
    acts on both branches of a block; positions may be rotary, and queries and keys normalised. Positions are computed
    for the size of x, so one network accepts images of any size.

    Args of forward:
        x: (B, in_channels, H, W), with H and W divisible by patch_size.
        t: (B,) numbers.
        y: (B,) classes, or None for an unconditional network.
        augmentation: (B, augmentations) labels of augmented images; None is the same as zeros.

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
        depth: int,
        heads: int,
        patch_size: int,
        positions: str,
        qk_norm: bool,
        dropout: float,
        time_scale: float,
        gradient_checkpointing: bool = False,
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        self.patch_size, self.positions, self.head_dim = patch_size, positions, width // heads
        self.embedding = Embedding(TIME_DIM, width, time_scale, classes)
        self.augmentation = nn.Linear(augmentations, width, bias=False) if augmentations else None
        self.stem = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(DitBlock(width, heads, qk_norm, dropout) for _ in range(depth))
        self.adaptive = AdaptiveNorm(width, 2)
        self.head = nn.Linear(width, patch_size**2 * out_channels)
        self._initialise()
        if gradient_checkpointing:
            set_recompute(self)

    def _initialise(self) -> None:
        """Initialise the weights as in the paper's code."""
        self.apply(init_xavier)
        nn.init.xavier_uniform_(self.stem.weight.view(self.stem.out_channels, -1))  # as a linear layer
        for module in self.embedding.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in [*self.modules()]:
            if isinstance(module, AdaptiveNorm):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y)
        if self.augmentation is not None and augmentation is not None:
            emb = emb + self.augmentation(augmentation)
        x = self.stem(x)
        width, rows, columns = x.shape[1:]
        x, rotation = x.flatten(2).mT, None
        if self.positions == "sine":
            x = x + sine_positions(rows, columns, width, x.device)
        else:
            rotation = rotations(rows, columns, self.head_dim, x.device)
        for block in self.blocks:
            x = block(x, emb, rotation)
        x = self.head(normalise(x, *self.adaptive(emb)))
        return rearrange(x, "b (y x) (p q c) -> b c (y p) (x q)", y=rows, p=self.patch_size, q=self.patch_size)
