"""A network trained by several processes: replicated (DDP) or sharded (FSDP2).

The imports are local, since they take most of a second, which a single process does not need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_cli.distributed import collectives


def wrap_distributed(
    network: nn.Module, average: nn.Module, strategy: str, device: torch.device, dtype: torch.dtype, compiled: bool
) -> nn.Module:
    """Return the module to call in training, whose gradients are averaged over all ranks.

    With the strategy "fsdp", shard the parameters of `network` and of `average` in place. With `compiled`, compile the
    network as a whole, or each block that is sharded, in place, so that names in checkpoints stay clean.
    """
    if strategy == "fsdp":
        _shard(network, device, dtype, compiled)
        _shard(average, device, dtype, False)
        return network
    from torch.nn.parallel import DistributedDataParallel

    if compiled:
        _compile_as_one_graph(network)
    _match_strides_of_gradients(network)
    ids = None if device.type == "cpu" else [device]
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def _compile_as_one_graph(network: nn.Module) -> None:
    """Compile a network that will be wrapped by DDP.

    Within the forward pass of DDP, torch.compile would divide the network at the buckets of gradients, so that they are
    averaged during the backward pass. One graph has fewer and larger kernels.
    """
    from torch._dynamo import config

    config.optimize_ddp = False
    network.compile(dynamic=False)


def _match_strides_of_gradients(network: nn.Module) -> None:
    """Give the gradients of 1x1 filters the strides of the filters, which DDP expects.

    The strides of (O, I, 1, 1) are ambiguous: in the same memory, kernels return (I, 1, I, I) or (I, 1, 1, 1),
    depending on the device and the dtype.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4 and parameter.shape[2:] == (1, 1):
            parameter.register_hook(partial(_with_strides, parameter.stride()))


def _with_strides(strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    return gradient.contiguous().as_strided(gradient.shape, strides)


def _shard(network: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
    """Shard each block by itself, so that one block at a time is gathered (Zhao et al. 2023, arXiv:2304.11277).

    If the network computes in bf16, parameters are gathered in bf16, and gradients are averaged in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (collectives.world_size(),))  # by default that of a GPU, even with device=cpu
    gathered = torch.bfloat16 if dtype == torch.bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks = list(_blocks(network))
    if compiled:
        _compile_blocks(blocks)
    for block in blocks:
        block.register_forward_pre_hook(_in_channels_last)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def _compile_blocks(blocks: list[nn.Module]) -> None:
    """Compile the forward pass of each block, without the hooks that gather its parameters.

    Blocks of one class share its code, of which torch.compile makes 8 versions at most by default.
    """
    from torch._dynamo import config

    versions = 4 * len(blocks)  # each with and without gradients, of itself and of its inputs
    config.cache_size_limit = max(config.cache_size_limit, versions)  # called recompile_limit since torch 2.7
    config.accumulated_cache_size_limit = max(config.accumulated_cache_size_limit, versions)
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def _in_channels_last(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert the images among the inputs of a block to channels_last, which sharded filters cannot have themselves."""
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs
    )


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
