"""Images from a network, one seed per image."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ddpm_cli import rng
from ddpm_cli.config import TrainConfig
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import Step, sample
from ddpm_cli.diffusion.schedules import betas_of
from ddpm_cli.options import Sampler
from ddpm_cli.training.devices import in_precision


class ImageNoise:
    """Standard normal noise in which image i of a seed always gets the same, whatever is drawn beside it.

    Drawn on the CPU, so that it is the same on every device.
    """

    def __init__(self, seed: int, images: range, shape: tuple[int, ...], device: torch.device) -> None:
        self.generators = [rng.generator(seed, "image", i) for i in images]
        self.shape = shape
        self.device = device

    def __call__(self) -> Tensor:
        """(images, *shape) float32 on the device, anew at each call."""
        noise = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(noise).to(self.device)


def build_denoiser(
    config: TrainConfig, network: nn.Module, device: torch.device, dtype: torch.dtype
) -> Denoiser:
    """The network of `config` as the denoiser that training and sampling share, computing in `dtype`."""
    process = Process(betas_of(config.schedule), device)
    predict = in_precision(network, device, dtype)
    return Denoiser(predict, process, config.prediction, config.model.self_condition)


def generate(
    denoiser: Denoiser,
    sampler: Sampler,
    seed: int,
    n: int,
    batch_size: int,
    shape: tuple[int, ...],
    device: torch.device,
) -> Iterator[tuple[range, Iterator[Step]]]:
    """Images 0..n-1 of `seed`, each of `shape`, a batch at a time: which ones, and the sampler's steps.

    The images of a batch are its last step's x, in [-1, 1]. They do not depend on n and batch_size.
    """
    for first in range(0, n, batch_size):
        images = range(first, min(first + batch_size, n))
        noise = ImageNoise(seed, images, shape, device)
        yield images, sample(sampler, denoiser, noise(), noise)
