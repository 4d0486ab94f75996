from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Stopped, UserError
from ddpm_cli.files import NoRoom
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry
from tests.processes import in_two


def test_collectives_of_one_process() -> None:
    assert (collectives.rank(), collectives.world_size(), collectives.is_rank_zero()) == (0, 1, True)
    assert collectives.shard_slice(7) == slice(0, 7)
    assert collectives.all_reduce_max(3) == 3
    assert collectives.all_gather_object("x") == ["x"]
    assert collectives.all_reduce_mean(torch.tensor(2.0)) == 2
    assert collectives.on_rank_zero(lambda: 5) == collectives.local_rank_zero_first(lambda: 5) == 5
    with pytest.raises(UserError, match="mine"):
        collectives.on_rank_zero(lambda: _refuse("mine"))


def _refuse(message: str) -> None:
    raise UserError(message)


def _told(work: Any) -> str:
    try:
        return str(work())
    except (UserError, NoRoom) as error:
        return f"{type(error).__name__}: {error}"


def _full() -> None:
    raise NoRoom(Path("file"), 2048)


def _all_of_it(folder: Path) -> dict[str, Any]:
    rank = collectives.rank()
    kept = folder / "kept"

    def fetched() -> str:
        if kept.exists():
            return "found"
        kept.write_text("")
        return "fetched"

    def refused_by_the_second() -> str:
        if rank == 1:
            _refuse("second")
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
        "largest": collectives.all_reduce_max(rank + 5),
        "everyones": collectives.all_gather_object(str(rank)),
        "by_main": collectives.on_rank_zero(lambda: f"of {rank}"),
        "refused": _told(lambda: collectives.on_rank_zero(lambda: _refuse(f"of {rank}"))),
        "full": _told(lambda: collectives.on_rank_zero(_full)),
        "in turn": collectives.local_rank_zero_first(fetched),
        "one of two": _told(lambda: collectives.local_rank_zero_first(refused_by_the_second)),
        "batches": [(images.start, images.stop, made) for images, made in batches_with_oom_retry(9, 4, work)],
        "calls": calls,
    }


def test_collectives_of_two_processes(tmp_path: Path) -> None:
    first, second = in_two(_all_of_it, tmp_path, tmp_path)
    shares = zip(first.pop("shares"), second.pop("shares"), strict=True)
    assert [one + other for one, other in shares] == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]
    assert [first.pop("in turn"), second.pop("in turn")] == ["fetched", "found"]
    calls = first.pop("calls"), second.pop("calls")
    assert first == second
    assert first == {
        "mean": 0.5,
        "gathered": [0, 0, 1, 1],
        "largest": 6,
        "everyones": ["0", "1"],
        "by_main": "of 0",
        "refused": "UserError: of 0",
        "full": "NoRoom: file: no room on the disk for this file, which needs 2.0 KiB; make some",
        "one of two": "UserError: second",
        # four each do not fit in one of the two, so all go on with two each; the last one is left to the second
        "batches": [(0, 2, [0, 10]), (2, 4, [20, 30]), (4, 6, [40, 50]), (6, 8, [60, 70]), (8, 9, [80])],
    }
    assert calls == ([(0, 4), (0, 2), (4, 6), (8, 9)], [(4, 8), (2, 4), (6, 8), (8, 9)])


def test_errors_of_one_process_can_be_raised_in_another() -> None:
    import pickle

    for error in (NoRoom(Path("a"), 3), Stopped(15, "stopped"), UserError("no")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
    assert Stopped(15, "stopped").status == 143
