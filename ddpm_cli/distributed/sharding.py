"""A network trained by several processes: a copy in each (ddp), or a part of it in each (fsdp).

What torch has for that takes most of a second to import, which one process alone does not wait for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddpm_cli.distributed import collectives


def shared(network: nn.Module, average: nn.Module, strategy: str, device: torch.device) -> nn.Module:
    """What to call in training for the network that several processes train: its gradients are the means over them.

    fsdp: of the parameters of `network` and of `average` each process keeps a part from now on.
    """
    if collectives.world_size() == 1:
        return network
    if strategy == "fsdp":
        _shard(network)
        _shard(average)
        return network
    from torch.nn.parallel import DistributedDataParallel

    ids = None if device.type == "cpu" else [device]
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def _shard(network: nn.Module) -> None:
    """Each block by itself, so that one at a time is whole while it computes (Zhao et al. 2023, arXiv:2304.11277)."""
    from torch.distributed.fsdp import fully_shard

    for block in list(_blocks(network)):
        fully_shard(block)
    fully_shard(network)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The largest modules with parameters and no lists of modules in them."""
    for child in network.children():
        if any(isinstance(module, nn.ModuleList) for module in child.modules()):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


@contextmanager
def gradient_sync(module: nn.Module, now: bool) -> Iterator[None]:
    """While in it, gradients are shared among the processes, or where it is not `now`, kept and added up."""
    if collectives.world_size() == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
        yield
    elif now:
        yield
    else:
        with module.no_sync():  # type: ignore[operator]  # of DistributedDataParallel
            yield


def unshard(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must ask for it."""
    if collectives.world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The inverse of `unshard`: a copy that is sharded, and lies in memory, as `like` does; or of what is no part."""
    if tensor.shape != like.shape:
        return tensor.clone()
    if collectives.world_size() > 1:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(like, DTensor):
            return distribute_tensor(tensor.to(like.device).contiguous(), like.device_mesh, like.placements)
    return torch.empty_like(like).copy_(tensor)


def replicate_like(flag: Tensor, like: Tensor) -> Tensor:
    """The same `flag` in each process, fit to be used beside parted tensors if `like` is one."""
    if collectives.world_size() == 1:
        return flag
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(like, DTensor):
        return flag
    return DTensor.from_local(flag, like.device_mesh, [Replicate()] * like.device_mesh.ndim)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it unless it is sharded."""
    if collectives.world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unshard_rows(stacked: Tensor, like: Tensor) -> Tensor:
    """All rows of matrices (N, own rows, C), if parameters such as `like` are sharded by rows: (N, rows, C)."""
    if collectives.world_size() == 1:
        return stacked
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return stacked
    counts = [len(rows) for rows in torch.arange(like.shape[0]).chunk(collectives.world_size())]
    counts += [0] * (collectives.world_size() - len(counts))
    padded = stacked.new_zeros(len(stacked), max(counts), stacked.shape[2])
    padded[:, : stacked.shape[1]] = stacked
    gathered = collectives.all_gather(padded).unflatten(
        0, (collectives.world_size(), -1)
    )  # (processes, N, rows at most, C)
    return torch.cat([part[:, :count] for part, count in zip(gathered, counts, strict=True)], dim=1)


def shard_rows(stacked: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole_rows`."""
    if collectives.world_size() == 1:
        return stacked
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return stacked
    first = sum(len(rows) for rows in torch.arange(like.shape[0]).chunk(collectives.world_size())[: collectives.rank()])
    return stacked[:, first : first + len(like.to_local())]
