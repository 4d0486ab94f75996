"""Collective operations of the default process group of torch.distributed; with one process they do nothing.

Rank 0 alone writes files and prints. All ranks must call the same operations in the same order.
"""

import os
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ddpm_cli.errors import Failure, UserError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


_alone = False


def world_size() -> int:
    """Return the number of processes."""
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Return whether this process writes files and prints."""
    return rank() == 0


def progress_bar_disabled() -> bool | None:
    """Return tqdm's `disable`: on rank 0 False in notebooks and None, for terminals only, elsewhere; on others True."""
    if not is_rank_zero():
        return True
    return False if "ipykernel" in sys.modules else None


@contextmanager
def alone() -> Iterator[None]:
    """Within the context, this process works as the only one, while the others do something else or have ended."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def shard_slice(count: int) -> slice:
    """Return this rank's slice of `count` items; the sizes of any two ranks differ by at most one."""
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean of `value` over all ranks, without waiting for the device."""
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def all_gather(values: Tensor) -> Tensor:
    """Return `values` (B, ...) of all ranks, concatenated by rank: (B * world size, ...). All have one shape."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def all_reduce_max(*numbers: int) -> list[int]:
    """Return the largest of all ranks for each number. The hosts wait for each other, but not for their devices."""
    if world_size() == 1:
        return list(numbers)
    largest = torch.tensor(numbers)  # on the CPU, so that gloo reduces it
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return [int(number) for number in largest]


def all_gather_object(value: T) -> list[T]:
    """Return the objects of all ranks, by rank. They are pickled, since the ranks trust each other."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def tensors_of_rank_zero(tensors: Mapping[K, Tensor] | None, device: torch.device) -> Iterator[tuple[K, Tensor]]:
    """Yield the keys and tensors that rank 0 has, one at a time, on every rank.

    Only one tensor at a time is held beside those of rank 0, whose argument counts alone; other ranks pass None.

    Args:
        device: that the ranks train on, over which the tensors are sent.
    """
    if world_size() == 1:
        assert tensors is not None
        yield from tensors.items()
        return
    about = [[(key, x.shape, x.dtype) for key, x in tensors.items()] if tensors is not None else None]
    dist.broadcast_object_list(about, src=0)
    for key, shape, dtype in about[0] or []:
        value = torch.empty(shape, dtype=dtype, device=device)
        if tensors is not None:
            value.copy_(tensors[key])
        dist.broadcast(value, src=0)
        yield key, value


def gather_object(value: T) -> list[T]:
    """Return the objects of all ranks, by rank, on rank 0, and an empty list elsewhere."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size() if is_rank_zero() else None
    dist.gather_object(value, values)
    return values or []


class _Outcome(NamedTuple, Generic[T]):
    value: T | None
    error: UserError | Failure | None

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def _outcome(work: Callable[[], T]) -> _Outcome[T]:
    try:
        return _Outcome(work(), None)
    except (UserError, Failure) as error:
        return _Outcome(None, error)


def on_rank_zero(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 alone and return its result on every rank.

    A `UserError` or `Failure` is raised on every rank; any other error ends rank 0, and with it the group.
    """
    if world_size() == 1:
        return work()
    shared = [_outcome(work) if is_rank_zero() else None]
    dist.broadcast_object_list(shared, src=0)
    assert shared[0] is not None
    return shared[0].unwrap()


def local_rank_zero_first(work: Callable[[], T]) -> T:
    """Call `work` on every rank, on local rank 0 of each machine first, so that the others find what it downloaded.

    A `UserError` or `Failure` of one rank is raised on every rank.
    """
    if world_size() == 1:
        return work()
    outcome: _Outcome[T] | None = None
    for first in (True, False):
        if first == (int(os.environ["LOCAL_RANK"]) == 0):
            outcome = _outcome(work)
        for error in all_gather_object(outcome and outcome.error):
            if error is not None:
                raise error
    assert outcome is not None
    return outcome.unwrap()
