"""A network for points: fully connected residual blocks, conditioned on t and the class."""

from torch import Tensor, nn

from ddpm_cli.config import Mlp as MlpConfig
from ddpm_cli.models.layers import Embedding


class Block(nn.Module):
    """Norm, scale and shift by the embedding, two layers; residual."""

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


class Mlp(nn.Module):
    """(x, t, y) -> output.

    Args of forward: x: (B, in_channels); t: (B,) integers; y: (B,) classes, or None for a network without.
    Returns: (B, out_channels), float32, or autocast's type.
    """

    def __init__(self, config: MlpConfig, in_channels: int, out_channels: int, classes: int) -> None:
        super().__init__()
        width = config.width
        self.embedding = Embedding(width, width, config.time_scale, classes)
        self.stem = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(Block(width, config.dropout) for _ in range(config.blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_channels))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, emb)
        return self.head(x)
