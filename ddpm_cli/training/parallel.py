"""A network trained by several processes: a copy in each (ddp), or a part of it in each (fsdp)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def sharded(network: nn.Module) -> nn.Module:
    """The same network, of whose parameters each process holds a part from now on.

    Each block by itself, so that one at a time is whole while it computes (Zhao et al. 2023, arXiv:2304.11277).
    """
    for blocks in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            if not any(isinstance(module, nn.ModuleList) for module in block.modules()):
                fully_shard(block)
    fully_shard(network)
    return network


def replicated(network: nn.Module, device: torch.device) -> nn.Module:
    """A module that calls `network`, and whose gradients are the means over the processes."""
    ids = None if device.type == "cpu" else [device]
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def synchronised(module: nn.Module, now: bool) -> Iterator[None]:
    """While in it, gradients are shared among the processes, or where it is not `now`, kept and added up."""
    match module:
        case DistributedDataParallel() if not now:
            with module.no_sync():
                yield
        case FSDPModule():
            module.set_requires_gradient_sync(now)
            yield
        case _:
            yield


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`, for what is parted as `like` is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def everywhere(flag: Tensor, like: Tensor) -> Tensor:
    """The same `flag` in each process, fit to be used beside parted tensors if `like` is one."""
    if not isinstance(like, DTensor):
        return flag
    return DTensor.from_local(flag, like.device_mesh, [Replicate()] * like.device_mesh.ndim)
