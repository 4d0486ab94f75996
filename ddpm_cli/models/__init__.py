"""Networks: forward(x, t, y). They know nothing of diffusion."""

from torch import nn

from ddpm_cli.config import ConvUNet as ConvUNetConfig
from ddpm_cli.config import DdpmUNet as DdpmUNetConfig
from ddpm_cli.config import Mlp as MlpConfig
from ddpm_cli.config import Model
from ddpm_cli.config import UNet as UNetConfig
from ddpm_cli.models.conv_unet import ConvUNet
from ddpm_cli.models.ddpm_unet import DdpmUNet
from ddpm_cli.models.mlp import Mlp
from ddpm_cli.models.unet import UNet


def build_network(model: Model, channels: int, classes: int = 0, outputs: int = 1) -> nn.Module:
    """Return the network of `model` for examples with `channels` channels.

    It takes twice the channels if it is self-conditioned, and returns `outputs` times as many. `classes` is the number
    of class labels, 0 for an unconditional network; the label `classes` is the null label.
    """
    in_channels = channels * (2 if model.self_condition else 1)
    out_channels = channels * outputs
    match model:
        case UNetConfig():
            return UNet(model, in_channels, out_channels, classes)
        case DdpmUNetConfig():
            return DdpmUNet(model, in_channels, out_channels, classes)
        case ConvUNetConfig():
            return ConvUNet(model, in_channels, out_channels, classes)
        case MlpConfig():
            return Mlp(model, in_channels, out_channels, classes)
    raise TypeError(f"no network for {model}")
