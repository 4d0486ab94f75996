"""Networks: forward(x, t, y). They do not depend on the diffusion process."""

from torch import nn

from ddpm_cli.config import Model, implementation_of
from ddpm_cli.models import conv_unet, ddpm_unet, ddpmpp, dit, mlp, unet

__all__ = ["build_network", "conv_unet", "ddpm_unet", "ddpmpp", "dit", "mlp", "unet"]


def build_network(model: Model, channels: int, classes: int = 0, outputs: int = 1, augmentations: int = 0) -> nn.Module:
    """Return the network of `model` for examples with `channels` channels.

    It takes twice the channels if it is self-conditioned, and returns `outputs` times as many. `classes` is the number
    of class labels, 0 for an unconditional network; the label `classes` is the null label. `augmentations` is the
    number of augmentation labels, which it takes as a keyword argument `augmentation`; 0 for none.
    """
    in_channels = channels * (2 if model.self_condition else 1)
    labels = {"augmentations": augmentations} if augmentations else {}
    network: nn.Module = implementation_of(model)(in_channels, channels * outputs, classes, **labels)
    return network
