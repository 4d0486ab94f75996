"""Networks: forward(x, t). They know nothing of diffusion."""

from torch import nn

from ddpm_cli.models.ddpm_unet import DdpmUNet
from ddpm_cli.models.unet import UNet
from ddpm_cli.options import DdpmUNet as DdpmUNetConfig
from ddpm_cli.options import Model
from ddpm_cli.options import UNet as UNetConfig


def build_network(model: Model, channels: int) -> nn.Module:
    """The network of `model` for images of `channels`, twice as many in where it is self-conditioned."""
    in_channels = channels * (2 if model.self_condition else 1)
    match model:
        case UNetConfig():
            return UNet(model, in_channels, channels)
        case DdpmUNetConfig():
            return DdpmUNet(model, in_channels, channels)
    raise TypeError(f"no network for {model}")
