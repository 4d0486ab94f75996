"""Build the network, the denoiser and the objective that a training config describes."""

import math
from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddpm_cli.config import ClassLabels, ImageDataset, TrainConfig, implementation_of
from ddpm_cli.data.augmentation import AUGMENTATIONS
from ddpm_cli.diffusion.denoiser import Denoiser, Network
from ddpm_cli.diffusion.objective import Objective
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timestep_samplers import Uniform
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.cuda_graph import CudaGraphs
from ddpm_cli.distributed.devices import should_compile
from ddpm_cli.models import build_network
from ddpm_cli.models.layers import make_dropout_repeatable

CALLS_WORTH_COMPILING = 10_000
"""Network calls that take about as long as compiling, one to two minutes, on an H200 (5 to 30 ms each)."""
SIGMA_DATA = 0.5
"""Standard deviation of images in [-1, 1], where it was not estimated (Karras et al. 2022, table 1)."""
UNBOUNDED = 4.0
"""Limit of the estimates of x0 shown to a self-conditioned network if the data are not bounded by [-1, 1]."""


def network_of(config: TrainConfig, classes: list[str]) -> nn.Module:
    """Return the network of a run; it is conditional on `classes` if the config says so."""
    num_classes = len(classes) if isinstance(config.conditioning, ClassLabels) else 0
    outputs = 2 if config.variance == "learned_range" else 1
    augmentations = AUGMENTATIONS if getattr(config.dataset, "augment", 0.0) else 0
    return build_network(config.model, config.dataset.shape[0], num_classes, outputs, augmentations)


def build_denoiser(config: TrainConfig, network: nn.Module, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """Return the denoiser that training and sampling share, whose network computes in `dtype`."""
    process = Process(path_of(config.schedule), device)
    predict = in_precision(network, device, dtype)
    limit = 1.0 if config.dataset.bounded else UNBOUNDED
    sigma_data = SIGMA_DATA if config.sigma_data == "auto" else config.sigma_data
    return Denoiser(
        predict, process, config.prediction, config.variance, config.model.self_condition, limit, sigma_data
    )


def build_objective(config: TrainConfig, denoiser: Denoiser, network: nn.Module) -> Objective:
    """Return the loss that `denoiser` is trained on. If it repeats dropout, those layers of `network` are replaced."""
    discrete = isinstance(config.dataset, ImageDataset)
    dropouts = make_dropout_repeatable(network) if config.loss.repeats_dropout else []
    loss, weighting = implementation_of(config.loss), implementation_of(config.weighting)
    return Objective(denoiser, loss, weighting, discrete, dropouts)


def build_timestep_sampler(config: TrainConfig, device: torch.device | str) -> Uniform:
    """Return the distribution of the timesteps of a batch, with its state on `device`."""
    process = Process(path_of(config.schedule), "cpu")
    sampler: Uniform = implementation_of(config.timestep_sampler)(process, device)
    return sampler


def in_precision(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
    """Return a function that calls `network` under autocast to `dtype`; inputs and outputs stay as they are."""
    if dtype == torch.float32:
        return network

    def call(x: Tensor, t: Tensor, y: Tensor | None, **augmentation: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return network(x, t, y, **augmentation)

    return call


def for_inference(denoiser: Denoiser, device: torch.device) -> Denoiser:
    """Return the denoiser with batches of one size and CUDA graphs, if it is on CUDA.

    Batches have one size because the rounding of cuBLAS and cuDNN depends on it.
    """
    if device.type != "cuda":
        return denoiser
    graphs = denoiser.network if collectives.world_size() > 1 else with_cuda_graphs(denoiser.network)
    return replace(denoiser, network=FixedBatches(graphs))


class FixedBatches:
    """A network that is called with batches as large as the largest so far: smaller ones repeat their last example.

    All batches are contiguous too, so that a compiled network is not compiled again for another memory layout.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._largest = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        size = max(self._largest, len(x))
        self._largest = 0  # if this call fails for lack of memory, the next one is smaller
        output = self._network(_padded(x, size), _padded(t, size), None if y is None else _padded(y, size))
        self._largest = size
        return output[: len(x)]


def _padded(x: Tensor, size: int) -> Tensor:
    """Return x (B, ...) with its last row repeated, (size, ...), contiguous."""
    filled = x if len(x) == size else torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
    return filled.reshape(-1).view(filled.shape)  # `contiguous` keeps other strides of dimensions of size 1


def with_cuda_graphs(network: Network) -> Network:
    """Return a network that is replayed as a CUDA graph, one for each shape of its inputs. For inference only."""

    def run(variant: Hashable, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor]:
        return (network(x, t, y),)

    graphs = CudaGraphs(run)

    def call(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return graphs((x.shape, x.dtype, t.dtype, y is None), (x, t, y))[0]

    return call


def compile_for_inference(
    network: nn.Module, device: torch.device, choice: bool | None, n: int, batch_size: int, calls: int
) -> None:
    """Compile a network in place if `choice` says so, or if it is None and the calls ahead are worth it.

    Args:
        n: number of examples, in batches of `batch_size`, which the processes share.
        calls: number of network calls for each batch.
    """
    if network._compiled_call_impl is not None:  # by an earlier call
        return
    batches = math.ceil(n / (batch_size * collectives.world_size()))
    if should_compile(choice, device, batches * calls >= CALLS_WORTH_COMPILING):
        network.compile(dynamic=False if device.type == "cuda" else None)  # None: once more for a smaller last batch
