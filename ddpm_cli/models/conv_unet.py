"""A U-Net of convolutions and batch norms only, after Ronneberger et al. 2015 (arXiv:1505.04597)."""

import torch
from torch import Tensor, nn

from ddpm_cli.config import ConvUNetOptions, implements
from ddpm_cli.models.layers import class_vectors, sinusoidal_embedding


class ConvBlock(nn.Module):
    """Add the embedding, after a two-layer MLP, to the input; then twice a 3x3 convolution, batch norm and ReLU."""

    def __init__(self, dim: int, dim_out: int, emb_dim: int, dropout: float) -> None:
        super().__init__()
        self.emb = nn.Sequential(nn.Linear(emb_dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim_out, 3, padding=1),
            nn.BatchNorm2d(dim_out),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(dim_out, dim_out, 3, padding=1),
            nn.BatchNorm2d(dim_out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x + self.emb(emb)[:, :, None, None])


@implements(ConvUNetOptions)
class ConvUNet(nn.Module):
    """A U-Net with three levels of `width`, twice and four times as many channels.

    Args of forward:
        x: (B, in_channels, H, W), with H and W divisible by 4.
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
        dropout: float,
        time_dim: int,
        time_scale: float,
    ) -> None:
        super().__init__()
        self.time_dim, self.time_scale = time_dim, time_scale
        self.classes = class_vectors(classes, time_dim)
        self.down1 = ConvBlock(in_channels, width, time_dim, dropout)
        self.down2 = ConvBlock(width, 2 * width, time_dim, dropout)
        self.middle = ConvBlock(2 * width, 4 * width, time_dim, dropout)
        self.up2 = ConvBlock(4 * width + 2 * width, 2 * width, time_dim, dropout)
        self.up1 = ConvBlock(2 * width + width, width, time_dim, dropout)
        self.head = nn.Conv2d(width, out_channels, 1)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = sinusoidal_embedding(t * self.time_scale, self.time_dim)
        if self.classes is not None and y is not None:
            emb = emb + self.classes(y)
        fine = self.down1(x, emb)
        coarse = self.down2(self.pool(fine), emb)
        x = self.middle(self.pool(coarse), emb)
        x = self.up2(torch.cat([self.upsample(x), coarse], dim=1), emb)
        x = self.up1(torch.cat([self.upsample(x), fine], dim=1), emb)
        return self.head(x)
