"""A network trained by several processes: replicated (DDP) or sharded (FSDP2).

The imports are local, since they take most of a second, which a single process does not need.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddpm_cli.distributed import collectives


def wrap_distributed(
    network: nn.Module, average: nn.Module, strategy: str, device: torch.device, dtype: torch.dtype, compiled: bool
) -> nn.Module:
    """Return the module to call in training, whose gradients are averaged over all ranks.

    With the strategy "fsdp", shard the parameters of `network` and of `average` in place. With `compiled`, compile the
    network as a whole, or each block that is sharded. Modules are compiled in place, so that names in checkpoints stay
    clean, and before they are wrapped: torch.compile would divide a wrapped network into as many graphs as it has
    buckets of gradients, and compile a sharded one again for each block.
    """
    if strategy == "fsdp":
        _shard(network, device, dtype, compiled)
        _shard(average, device, dtype, False)
        return network
    from torch.nn.parallel import DistributedDataParallel

    if compiled:
        network.compile()
    else:
        _make_small_filters_contiguous(network)
    ids = None if device.type == "cpu" else [device]
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def _make_small_filters_contiguous(network: nn.Module) -> None:
    """Give 1x1 filters in channels_last the strides of their gradients, which otherwise are copied at each step."""
    for parameter in network.parameters():
        if parameter.ndim == 4 and parameter.shape[2:] == (1, 1):
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _shard(network: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
    """Shard each block by itself, so that one block at a time is gathered (Zhao et al. 2023, arXiv:2304.11277).

    If the network computes in bf16, parameters are gathered in bf16, and gradients are averaged in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (collectives.world_size(),))  # by default that of a GPU, even with device=cpu
    gathered = torch.bfloat16 if dtype == torch.bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in list(_blocks(network)):
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules that have parameters and contain no ModuleList."""
    for child in network.children():
        if any(isinstance(module, nn.ModuleList) for module in child.modules()):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


@contextmanager
def gradient_sync(module: nn.Module, now: bool) -> Iterator[None]:
    """Within the context, average gradients over all ranks if `now`, else accumulate them locally."""
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
        with module.no_sync():  # type: ignore[operator]  # a method of DistributedDataParallel
            yield


def unshard(tensor: Tensor) -> Tensor:
    """Return the full tensor if it is sharded. All ranks must call it."""
    if collectives.world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unshard_on_rank_zero(tensor: Tensor) -> Tensor | None:
    """Return the full tensor; if it is sharded, on the CPU of rank 0 and None elsewhere. All ranks must call it."""
    full = unshard(tensor)
    if full is tensor:
        return tensor
    return full.cpu() if collectives.is_rank_zero() else None


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a full tensor that is sharded, and has the memory layout, as `like`; a plain copy otherwise."""
    if tensor.shape != like.shape:
        return tensor.clone()
    if collectives.world_size() > 1:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(like, DTensor):
            return distribute_tensor(tensor.to(like.device).contiguous(), like.device_mesh, like.placements)
    return torch.empty_like(like).copy_(tensor)


def replicate_like(flag: Tensor, like: Tensor) -> Tensor:
    """Return `flag`, equal on all ranks, as a replicated DTensor if `like` is one."""
    if collectives.world_size() == 1:
        return flag
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(like, DTensor):
        return flag
    return DTensor.from_local(flag, like.device_mesh, [Replicate()] * like.device_mesh.ndim)


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which is all of it unless the tensor is sharded."""
    if collectives.world_size() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unshard_rows(stacked: Tensor, like: Tensor) -> Tensor:
    """Gather the rows of matrices (N, own rows, C) if parameters such as `like` are sharded by rows: (N, rows, C)."""
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
    """Return this rank's rows of full matrices (N, rows, C): the inverse of `unshard_rows`."""
    if collectives.world_size() == 1:
        return stacked
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return stacked
    first = sum(len(rows) for rows in torch.arange(like.shape[0]).chunk(collectives.world_size())[: collectives.rank()])
    return stacked[:, first : first + len(like.to_local())]
