"""Build the network and the denoiser that a training config describes."""

import torch
from torch import Tensor, nn

from ddpm_cli.config import ClassLabels, TrainConfig
from ddpm_cli.diffusion.denoiser import Denoiser, Network
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import betas_of
from ddpm_cli.models import build_network

UNBOUNDED = 4.0
"""How far estimates that a network is shown reach where the data are not in [-1, 1] but of that order."""


def network_of(config: TrainConfig, classes: list[str]) -> nn.Module:
    """The network of a run, told of `classes` where it is conditioned on them."""
    told = len(classes) if isinstance(config.conditioning, ClassLabels) else 0
    outputs = 2 if config.variance == "learned_range" else 1
    return build_network(config.model, config.dataset.shape[0], told, outputs)


def build_denoiser(config: TrainConfig, network: nn.Module, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """The network of `config` as the denoiser that training and sampling share, computing in `dtype`."""
    process = Process(betas_of(config.schedule), device)
    predict = in_precision(network, device, dtype)
    limit = 1.0 if config.dataset.bounded else UNBOUNDED
    return Denoiser(predict, process, config.prediction, config.variance, config.model.self_condition, limit)


def in_precision(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
    """`network` computing in `dtype` by autocast; what surrounds the call stays in float32."""
    if dtype == torch.float32:
        return network

    def call(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return network(x, t, y)

    return call
