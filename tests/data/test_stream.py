import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_cli.data.stream import AHEAD, Stream
from ddpm_cli.data.table import ExampleBatch, Examples, StreamedExamples, Table
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Failure
from tests.processes import in_two

CPU = torch.device("cpu")
PIXELS = torch.randint(256, (10, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10)


def read(index: int) -> np.ndarray:
    return PIXELS[index].numpy()


def stream(flip: bool = True, reader: object = read) -> Stream:
    return Stream(StreamedExamples(10, reader, "", LABELS), flip, 3, CPU)  # type: ignore[arg-type]


def table() -> Table:
    return Table(Examples(PIXELS, LABELS), True, 3, CPU)


@pytest.mark.parametrize("steps", [range(8), [5, 6, 2, 3, 4, 9, 0]])
def test_batches_are_those_of_a_table(steps: list[int]) -> None:
    ours, theirs = stream(), table()
    for step in steps:
        (x0, y, _), (expected, labels, _) = ours.batch(step, 4), theirs.batch(step, 4)
        assert torch.equal(x0, expected)
        assert torch.equal(torch.as_tensor(y), torch.as_tensor(labels))


def test_batch_larger_than_the_data_and_another_batch_size() -> None:
    ours = stream()
    for size in (25, 3, 25):
        assert torch.equal(ours.batch(1, size).x0, table().batch(1, size).x0)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The rank and the number of processes that the code sees."""
    seen = {"rank": 0, "size": 1}
    monkeypatch.setattr(collectives, "rank", lambda: seen["rank"])
    monkeypatch.setattr(collectives, "world_size", lambda: seen["size"])
    return seen


def test_resume_with_more_processes_has_the_same_bits(ranks: dict[str, int]) -> None:
    """Steps 0 to 2 in one process, 3 to 5 in two, 6 to 8 in four."""
    expected = [table().batch(step, 8).x0 for step in range(9)]
    for size, steps in ((1, range(3)), (2, range(3, 6)), (4, range(6, 9))):
        parts: list[list[torch.Tensor]] = []
        for rank in range(size):
            ranks |= {"rank": rank, "size": size}
            own = stream()
            parts.append([own.batch(step, 8).x0 for step in steps])
        for i, step in enumerate(steps):
            assert torch.equal(torch.cat([part[i] for part in parts]), expected[step])


def test_augmentation_does_not_depend_on_the_number_of_processes(ranks: dict[str, int]) -> None:
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def batches(step: int) -> ExampleBatch:
        return Table(Examples(pixels), True, 3, CPU, augment=0.5).batch(step, 8)

    whole = batches(2)
    parts = []
    for rank in range(4):
        ranks |= {"rank": rank, "size": 4}
        parts.append(batches(2))
    assert torch.allclose(torch.cat([part.x0 for part in parts]), whole.x0, atol=1e-5)
    labels = [torch.as_tensor(part.augmentation) for part in parts]
    assert torch.equal(torch.cat(labels), torch.as_tensor(whole.augmentation))
    assert whole.augmentation is not None
    assert whole.augmentation.any()
    ranks |= {"rank": 0, "size": 1}
    assert torch.equal(batches(2).x0, whole.x0)
    assert not torch.equal(torch.as_tensor(batches(3).augmentation), whole.augmentation)


def test_another_batch_size_goes_on_in_the_same_order(ranks: dict[str, int]) -> None:
    """After two batches of 4, the third has 8 images; they are those that follow, in one, two or four processes."""
    expected = table().indices(8, 16).tolist()
    for size in (1, 2, 4):
        seen: list[list[int]] = [[], []]
        for rank in range(size):
            ranks |= {"rank": rank, "size": size}
            for i, step in enumerate((2, 3)):
                ours, theirs = stream(), table()
                labels = ours.batch(step, 8, offset=-8).y
                assert labels is not None
                seen[i] += labels.tolist()
                assert torch.equal(ours.batch(step, 8, offset=-8).x0, theirs.batch(step, 8, offset=-8).x0)
        assert seen[0] + seen[1] == expected


def test_each_process_reads_only_its_share(ranks: dict[str, int]) -> None:
    ranks |= {"rank": 1, "size": 2}
    seen: list[int] = []
    own = stream(reader=lambda index: seen.append(index) or read(index))
    own.batch(0, 4)
    own._pool.shutdown()
    assert sorted(seen) == sorted(
        index for step in range(1 + AHEAD) for index in table().indices(4 * step + 2, 2).tolist()
    )


def one_batch() -> torch.Tensor:
    return stream().batch(2, 8).x0


def test_two_processes(tmp_path: Path) -> None:
    assert torch.equal(torch.cat(in_two(one_batch, tmp_path)), one_batch())


def test_next_batches_are_decoded_ahead() -> None:
    """Batch 1 is decoded without being asked for, and not more than `AHEAD` batches are."""
    wanted = table().indices(0, 2 * (1 + AHEAD)).tolist()
    left, decoded = [*wanted], threading.Event()

    def counting(index: int) -> np.ndarray:
        left.remove(index)  # ValueError for an index that is not wanted yet
        if not left:
            decoded.set()
        return read(index)

    ours = stream(reader=counting)
    ours.batch(0, 2)
    assert decoded.wait(timeout=30)
    ours._pool.shutdown()


def test_damage_is_reported_at_the_step_that_needs_the_image() -> None:
    bad = int(table().indices(2, 1))

    def damaged(index: int) -> np.ndarray:
        if index == bad:
            raise Failure("damaged")
        return read(index)

    ours = stream(reader=damaged)
    ours.batch(0, 2)
    with pytest.raises(Failure, match="damaged"):
        ours.batch(1, 2)
    assert torch.equal(ours.batch(2, 2).x0, table().batch(2, 2).x0)
