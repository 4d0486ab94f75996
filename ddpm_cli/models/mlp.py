"""A network for points: fully connected residual blocks, conditioned on t and the class."""

from torch import Tensor, nn

from ddpm_cli.config import MlpOptions, implements
from ddpm_cli.models.layers import Embedding


class MlpBlock(nn.Module):
    """Layer norm, scale and shift by the embedding, two linear layers, and a residual connection."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.emb = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb(emb).chunk(2, dim=1)
        return x + self.layers(self.norm(x) * (1 + scale) + shift)


@implements(MlpOptions)
class Mlp(nn.Module):
    """A network for points.

    Args of forward:
        x: (B, in_channels).
        t: (B,) numbers.
        y: (B,) classes, or None for an unconditional network.

    Returns:
        (B, out_channels), float32 or the dtype of autocast.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        classes: int,
        *,
        width: int,
        blocks: int,
        dropout: float,
        time_scale: float,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(width, width, time_scale, classes)
        self.stem = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(MlpBlock(width, dropout) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_channels))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, emb)
        return self.head(x)
