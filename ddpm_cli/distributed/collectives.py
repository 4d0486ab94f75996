"""The processes that work on one thing together: torch.distributed's default group, or this one alone without it.

Rank 0 is the main one: it alone writes files and talks. Every process of a group must come by the same calls in the
same order.
"""

import os
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ddpm_cli.errors import Failure, UserError

Thing = TypeVar("Thing")


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Whether this one writes and talks."""
    return rank() == 0


def progress_bar_disabled() -> bool | None:
    """tqdm's `disable`: None, which is where there is no terminal, but True in processes that do not talk."""
    return None if is_rank_zero() else True


def shard_slice(count: int) -> slice:
    """The part of `count` things in a row that is this process's: as many as another's, give or take one."""
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of `value` over the processes, on its device, which is not waited for."""
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def all_gather(values: Tensor) -> Tensor:
    """`values` (B, ...) of all, of one shape, by rank: (B * size, ...)."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def all_reduce_max(number: int) -> int:
    """The largest `number` of all. The hosts wait for each other, and not for their devices."""
    if world_size() == 1:
        return number
    numbers = torch.tensor(number)  # on the CPU, for gloo
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def all_gather_object(thing: Thing) -> list[Thing]:
    """What each process has, by rank: anything that can be pickled, for they trust each other."""
    if world_size() == 1:
        return [thing]
    things = [thing] * world_size()
    dist.all_gather_object(things, thing)
    return things


class _Outcome(NamedTuple, Generic[Thing]):
    value: Thing | None
    error: UserError | Failure | None

    def taken(self) -> Thing:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def _outcome(work: Callable[[], Thing]) -> _Outcome[Thing]:
    try:
        return _Outcome(work(), None)
    except (UserError, Failure) as error:
        return _Outcome(None, error)


def on_rank_zero(work: Callable[[], Thing]) -> Thing:
    """What `work` returns or raises in the main process, which alone does it.

    A foreseen error is everyone's. Another one ends the main process, and by that the group.
    """
    if world_size() == 1:
        return work()
    shared = [_outcome(work) if is_rank_zero() else None]
    dist.broadcast_object_list(shared, src=0)
    assert shared[0] is not None
    return shared[0].taken()


def local_rank_zero_first(work: Callable[[], Thing]) -> Thing:
    """What `work` returns in each process. The first one of each machine does it before the others there, which find
    what it fetched and kept. A foreseen error of one is everyone's.
    """
    if world_size() == 1:
        return work()
    outcome: _Outcome[Thing] | None = None
    for first in (True, False):
        if first == (int(os.environ["LOCAL_RANK"]) == 0):
            outcome = _outcome(work)
        for error in all_gather_object(outcome and outcome.error):
            if error is not None:
                raise error
    assert outcome is not None
    return outcome.taken()
