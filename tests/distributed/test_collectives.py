"""Collective operations in one process and in two."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Stopped, UserError
from ddpm_cli.files import NoRoom
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry
from tests.processes import in_two


def test_collectives_in_one_process() -> None:
    assert (collectives.rank(), collectives.world_size(), collectives.is_rank_zero()) == (0, 1, True)
    assert collectives.shard_slice(7) == slice(0, 7)
    assert collectives.all_reduce_max(3, 5) == [3, 5]
    assert collectives.all_gather_object("x") == ["x"]
    assert collectives.all_reduce_mean(torch.tensor(2.0)) == 2
    assert collectives.on_rank_zero(lambda: 5) == collectives.local_rank_zero_first(lambda: 5) == 5
    with pytest.raises(UserError, match="mine"):
        collectives.on_rank_zero(lambda: _raise_user_error("mine"))


CPU = torch.device("cpu")
OF_RANK_ZERO = {("a", 1): torch.tensor([[1.0, 2.0]]), "b": torch.tensor(7)}


def _size_alone() -> int:
    with collectives.alone():
        return collectives.world_size()


def _raise_user_error(message: str) -> None:
    raise UserError(message)


def _result_or_error(work: Any) -> str:
    """Return the result of `work`, or its error, as text."""
    try:
        return str(work())
    except (UserError, NoRoom) as error:
        return f"{type(error).__name__}: {error}"


def _raise_no_room() -> None:
    raise NoRoom(Path("file"), 2048)


def _all_collectives(folder: Path) -> dict[str, Any]:
    """Return the results of all collective operations in this process."""
    rank = collectives.rank()
    kept = folder / "kept"

    def fetch() -> str:
        if kept.exists():
            return "found"
        kept.write_text("")
        return "fetched"

    def fail_on_rank_one() -> str:
        if rank == 1:
            _raise_user_error("second")
        return "fine"

    calls: list[tuple[int, int]] = []

    def work(images: range) -> list[int]:
        calls.append((images.start, images.stop))
        if rank == 1 and len(images) > 2:
            raise torch.OutOfMemoryError
        return [10 * image for image in images]

    return {
        "shares": [list(range(5)[collectives.shard_slice(5)]), list(range(4)[collectives.shard_slice(4)])],
        "mean": collectives.all_reduce_mean(torch.tensor(float(rank))).item(),
        "gathered": collectives.all_gather(torch.tensor([rank, rank])).tolist(),
        "maximum": collectives.all_reduce_max(rank + 5, -rank),
        "objects": collectives.all_gather_object(str(rank)),
        "tensors": {
            key: x.tolist() for key, x in collectives.tensors_of_rank_zero(OF_RANK_ZERO if rank == 0 else None, CPU)
        },
        "sizes": [collectives.world_size(), _size_alone(), collectives.world_size()],
        "on_rank_zero": collectives.on_rank_zero(lambda: f"of {rank}"),
        "refused": _result_or_error(lambda: collectives.on_rank_zero(lambda: _raise_user_error(f"of {rank}"))),
        "full": _result_or_error(lambda: collectives.on_rank_zero(_raise_no_room)),
        "local_rank_zero_first": collectives.local_rank_zero_first(fetch),
        "error on rank 1": _result_or_error(lambda: collectives.local_rank_zero_first(fail_on_rank_one)),
        "batches": [(images.start, images.stop, made) for images, made in batches_with_oom_retry(9, 4, work)],
        "calls": calls,
    }


def test_collectives_in_two_processes(tmp_path: Path) -> None:
    first, second = in_two(_all_collectives, tmp_path, tmp_path)
    shares = zip(first.pop("shares"), second.pop("shares"), strict=True)
    assert [one + other for one, other in shares] == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]
    assert [first.pop("local_rank_zero_first"), second.pop("local_rank_zero_first")] == ["fetched", "found"]
    calls = first.pop("calls"), second.pop("calls")
    assert second.pop("batches") == []
    batches = first.pop("batches")
    assert first == second
    first["batches"] = batches
    assert first == {
        "mean": 0.5,
        "gathered": [0, 0, 1, 1],
        "maximum": [6, 0],
        "objects": ["0", "1"],
        "tensors": {("a", 1): [[1.0, 2.0]], "b": 7},
        "sizes": [2, 1, 2],
        "on_rank_zero": "of 0",
        "refused": "UserError: of 0",
        "full": "NoRoom: file: no room on the disk for this file, which needs 2.0 KiB; make some",
        "error on rank 1": "UserError: second",
        # a batch of four fails in one process, so both continue with batches of two; both compute the last image
        "batches": [(0, 2, [0, 10]), (2, 4, [20, 30]), (4, 6, [40, 50]), (6, 8, [60, 70]), (8, 9, [80])],
    }
    assert calls == ([(0, 4), (0, 2), (4, 6), (8, 9)], [(4, 8), (2, 4), (6, 8), (8, 9)])


def test_errors_can_be_pickled() -> None:
    import pickle

    for error in (NoRoom(Path("a"), 3), Stopped(15, "stopped"), UserError("no")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
    assert Stopped(15, "stopped").status == 143
