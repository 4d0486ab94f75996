"""DDPM++, the U-Net of Song et al. 2021 (arXiv:2011.13456), as Karras et al. 2022 (arXiv:2206.00364) train it."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.config import DdpmPpOptions, implements
from ddpm_cli.models.layers import (
    GroupNorm,
    Layer,
    attend,
    class_vectors,
    init_xavier,
    set_recompute,
    sinusoidal_embedding,
)

Levels = Sequence[tuple[int, str]]
"""Channels and kind of attention of each level."""
SKIP_SCALE = math.sqrt(0.5)
"""Factor of each sum of a branch and its residual connection, which keeps the variance."""
SMALL = 1e-5
"""Factor of the initial weights at the end of a branch."""


def _norm(dim: int) -> GroupNorm:
    """Return a group norm of at most 32 groups of at least 4 channels each; of fewer if they must divide `dim`."""
    most = max(1, min(32, dim // 4))
    return GroupNorm(next(groups for groups in range(most, 0, -1) if dim % groups == 0), dim, eps=1e-6)


def _resampled(x: Tensor, resample: str) -> Tensor:
    """Return x at half (down) or twice (up) its resolution, or as it is."""
    match resample:
        case "down":
            return F.avg_pool2d(x, 2)
        case "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return x


class DdpmPpBlock(nn.Module):
    """Twice group norm, SiLU and a 3x3 convolution, with a residual connection.

    The embedding is added between the two. With `resample` down or up, both the branch and the residual connection
    change the resolution before their first convolution.
    """

    def __init__(self, dim: int, dim_out: int, *, emb_dim: int, dropout: float, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = _norm(dim)
        self.conv1 = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.emb = nn.Linear(emb_dim, dim_out)
        self.norm2 = _norm(dim_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        same = dim == dim_out and resample == "none"
        self.residual = nn.Identity() if same else nn.Conv2d(dim, dim_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(_resampled(F.silu(self.norm1(x)), self.resample))
        h = F.silu(self.norm2(h + self.emb(emb)[:, :, None, None]))
        return (self.conv2(self.dropout(h)) + self.residual(_resampled(x, self.resample))) * SKIP_SCALE


class DdpmPpAttention(nn.Module):
    """Attention over the pixels by a single head, with a residual connection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = _norm(dim)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.to_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.to_out(attend(self.to_qkv(self.norm(x)), 1))) * SKIP_SCALE


class NoiseEmbedding(nn.Module):
    """The embedding (B, out_dim) of times t (B,), classes y (B,) and augmentation labels (B, augmentations).

    Sinusoids of `scale` times t, plus a learned vector of the class, plus a linear function of the augmentation labels,
    go through two layers. Classes and augmentation labels may be None.
    """

    def __init__(self, dim: int, out_dim: int, scale: float, classes: int, augmentations: int) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale
        self.classes = class_vectors(classes, dim)
        self.augmentation = nn.Linear(augmentations, dim, bias=False) if augmentations else None
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim), nn.SiLU())

    def forward(self, t: Tensor, y: Tensor | None, augmentation: Tensor | None) -> Tensor:
        emb = sinusoidal_embedding(t * self.scale, self.dim)
        if self.classes is not None and y is not None:
            emb = emb + self.classes(y)
        if self.augmentation is not None and augmentation is not None:
            emb = emb + self.augmentation(augmentation)
        return self.mlp(emb)


def _layer(block: Callable[..., nn.Module], dim: int, dim_out: int, attends: bool = False) -> Layer:
    return Layer(block(dim, dim_out), DdpmPpAttention(dim_out) if attends else nn.Identity())


def _encoder(
    levels: Levels, width: int, blocks: int, block: Callable[..., nn.Module]
) -> tuple[nn.ModuleList, list[int]]:
    """Return the layers, each of which gives a skip connection, and the channels of these and of the stem."""
    layers, dims = nn.ModuleList(), [width]
    for i, (dim, kind) in enumerate(levels):
        if i > 0:
            layers.append(_layer(partial(block, resample="down"), dims[-1], dims[-1]))
            dims.append(dims[-1])
        for _ in range(blocks):
            layers.append(_layer(block, dims[-1], dim, kind == "full"))
            dims.append(dim)
    return layers, dims


def _decoder(
    levels: Levels, skips: list[int], blocks: int, block: Callable[..., nn.Module]
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return the layers of each level, which take the skip connections, and the upsamplings between them.

    Only the last layer of a level has attention.
    """
    ups, upsamples, dim_in = nn.ModuleList(), nn.ModuleList(), skips[-1]
    for i, (dim, kind) in reversed(list(enumerate(levels))):
        level = nn.ModuleList()
        for j in range(blocks + 1):
            level.append(_layer(block, dim_in + skips.pop(), dim, kind == "full" and j == blocks))
            dim_in = dim
        ups.append(level)
        if i > 0:
            upsamples.append(_layer(partial(block, resample="up"), dim, dim))
    return ups, upsamples


@implements(DdpmPpOptions)
class DdpmPp(nn.Module):
    """DDPM++ as in the code of Karras et al. 2022 (`SongUNet` with its settings for DDPM++).

    Different from their code: levels rather than resolutions have attention. The vector of a class is a row of a
    table, initialised like the columns of their linear layer of the one-hot label; the null label, which they embed as
    zero, has a learned vector that starts at zero. The layer has no bias beside that of the next one.

    Args of forward:
        x: (B, in_channels, H, W), with H and W divisible by 2**(levels - 1).
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
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[str],
        dropout: float,
        time_scale: float,
        gradient_checkpointing: bool = False,
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        levels = list(zip([width * multiplier for multiplier in multipliers], attention, strict=True))
        block = partial(DdpmPpBlock, emb_dim=4 * width, dropout=dropout)
        self.embedding = NoiseEmbedding(width, 4 * width, time_scale, classes, augmentations)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.downs, skips = _encoder(levels, width, blocks, block)
        deepest, shallowest = levels[-1][0], levels[0][0]
        self.middle = nn.ModuleList([_layer(block, deepest, deepest, True), _layer(block, deepest, deepest)])
        self.ups, self.upsamples = _decoder(levels, skips, blocks, block)
        self.norm = _norm(shallowest)
        self.head = nn.Conv2d(shallowest, out_channels, 3, padding=1)
        self._initialise()
        if gradient_checkpointing:
            set_recompute(self)

    @torch.no_grad()
    def _initialise(self) -> None:
        self.apply(init_xavier)
        self.head.weight *= SMALL
        for module in self.modules():
            if isinstance(module, DdpmPpBlock):
                module.conv2.weight *= SMALL
            elif isinstance(module, DdpmPpAttention):
                module.to_qkv.weight *= math.sqrt(0.2)
                module.to_out.weight *= SMALL
        if (table := self.embedding.classes) is not None:
            classes, dim = table.num_embeddings - 1, table.embedding_dim
            bound = math.sqrt(6 * classes / (classes + dim))
            nn.init.uniform_(table.weight, -bound, bound)[-1] = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y, augmentation)
        x = self.stem(x)
        skips = [x]
        for layer in self.downs:
            x = layer(x, emb)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, emb)
        for i, level in enumerate(self.ups):
            for layer in level:  # type: ignore[attr-defined]  # a ModuleList
                x = layer(torch.cat([x, skips.pop()], dim=1), emb)
            if i < len(self.upsamples):
                x = self.upsamples[i](x, emb)
        return self.head(F.silu(self.norm(x)))
