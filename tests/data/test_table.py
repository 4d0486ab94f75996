import math

import pytest
import torch

from ddpm_cli.data.table import Examples, Table, room_on

CPU = torch.device("cpu")


def table(count: int = 10, flip: bool = False, seed: int = 0) -> Table:
    """Return a table in which image i has the pixels i and i + 100."""
    left = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    return Table(Examples(torch.cat([left, left + 100], dim=3)), flip, seed, CPU)


def numbers(batch: torch.Tensor) -> list[int]:
    """Return the index of each image of a batch of `table`."""
    return ((batch + 1) * 127.5).round().int().flatten(1).min(dim=1).values.tolist()


def test_pixels_are_scaled_to_minus_1_and_1() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    batch = Table(Examples(pixels), False, 0, CPU).batch(0, 2).x0
    assert sorted(batch.flatten().tolist()) == [-1, 1]


def test_each_image_is_used_once_per_epoch() -> None:
    seen = [number for step in range(10) for number in numbers(table().batch(step, 3).x0)]
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_batch_larger_than_the_table() -> None:
    assert sorted(numbers(table(3).batch(0, 9).x0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_batch_depends_only_on_seed_and_step() -> None:
    fresh, used = table(flip=True), table(flip=True)
    for step in range(7):
        used.batch(step, 4)
    assert torch.equal(fresh.batch(7, 4).x0, used.batch(7, 4).x0)
    assert not torch.equal(fresh.batch(7, 4).x0, table(flip=True, seed=1).batch(7, 4).x0)


def test_flip_mirrors_half_of_the_images() -> None:
    flipped = table(flip=True).batch(0, 1000).x0
    share = (flipped[:, 0, 0, 0] > flipped[:, 0, 0, 1]).float().mean()
    assert 0.4 < share < 0.6
    plain = table().batch(0, 1000).x0
    assert (plain[:, 0, 0, 0] < plain[:, 0, 0, 1]).all()


def test_mirroring_is_exact() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    plain = Table(Examples(pixels), False, 0, CPU).batch(0, 1).x0[0]
    reversed_ = plain[..., torch.arange(255, -1, -1)]
    batch = Table(Examples(pixels), True, 0, CPU).batch(0, 20).x0
    mirrored = [torch.equal(x0, reversed_) for x0 in batch]
    unchanged = [torch.equal(x0, plain) for x0 in batch]
    assert any(mirrored)
    assert all(a != b for a, b in zip(mirrored, unchanged, strict=True))


def test_table_takes_a_share_of_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert room_on(torch.device("cuda")) == 250
    assert room_on(CPU) == math.inf
