"""A small residual network without downsampling."""

from torch import Tensor, nn

from ddpm_cli.api import Embedding


class Block(nn.Module):
    """Two convolutions with the embedding of t and the class added between them, and a residual connection."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.emb = nn.Linear(width, width)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x + self.second(self.first(x) + self.emb(emb)[:, :, None, None])


class Residual(nn.Module):
    """A network for images: forward(x, t, y) returns (B, out_channels, H, W) for x (B, in_channels, H, W).

    t: (B,) timesteps. y: (B,) classes, where `classes` stands for no class; None if classes is 0.
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
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.head = nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embedding(t, y)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, emb)
        return self.head(x)
