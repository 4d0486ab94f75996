"""Snapshots of averages: rounding, damage, thinning, and the abandoned future of a run."""

from pathlib import Path

import pytest
import torch

from ddpm_cli.averages.snapshots import move_later_snapshots, read_snapshots, rounded, save_snapshot, thin
from ddpm_cli.checkpoints.run_folder import RunFolder

LENGTHS = [0.05, 0.1]
LIKE = {"w": torch.zeros(3), "b": torch.zeros(2, 2)}


def written(folder: Path, *steps: int) -> RunFolder:
    for step in steps:
        averages = {i: {name: torch.full_like(x, step + i) for name, x in LIKE.items()} for i in (0, 1)}
        save_snapshot(folder, step, LENGTHS, rounded(averages))
    return RunFolder(folder)


def steps_of(run: RunFolder, before: int = 100) -> list[int]:
    return [snapshot.step for snapshot in read_snapshots(run, before, LENGTHS, LIKE)]


def test_round_trip_in_float16(tmp_path: Path) -> None:
    run = written(tmp_path, 10, 20, 30)
    first, second = read_snapshots(run, 30, LENGTHS, LIKE)
    assert (first.step, second.step) == (10, 20)
    assert second.averages[1]["w"].tolist() == [21, 21, 21]
    assert second.averages[1]["w"].dtype == torch.float16


def test_values_beyond_float16_stay_in_float32() -> None:
    kept = rounded({0: {"large": torch.tensor([1e5]), "small": torch.tensor([1 / 3])}})[0]
    assert kept["large"].tolist() == [1e5]
    assert kept["small"].dtype == torch.float16


def test_damaged_and_foreign_snapshots_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = written(tmp_path, 10, 20, 30, 40, 50)
    content = bytearray(run.snapshot(20).read_bytes())
    content[len(content) // 2] ^= 1
    run.snapshot(20).write_bytes(content)
    run.snapshot(30).write_bytes(run.snapshot(10).read_bytes())  # of another step
    other = {i: {"w": torch.zeros(4), "b": torch.zeros(2, 2)} for i in (0, 1)}  # of another shape
    save_snapshot(tmp_path, 40, LENGTHS, other)
    infinite = {i: {"w": torch.full((3,), torch.inf), "b": torch.zeros(2, 2)} for i in (0, 1)}
    save_snapshot(tmp_path, 50, LENGTHS, infinite)
    assert steps_of(run) == [10]
    assert [line.count("left out") for line in caplog.messages] == [1, 1, 1, 1]
    assert "checksum does not match" in caplog.messages[0]


def test_a_link_to_a_pipe_or_a_folder_is_no_snapshot(tmp_path: Path) -> None:
    run = written(tmp_path, 10)
    run.snapshot(20).mkdir()
    run.snapshot(30).symlink_to("/dev/zero")
    assert steps_of(run) == [10]


def test_thinning_keeps_them_spread_over_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in range(1, 21):
        written(tmp_path, 10 * number)
        thin(tmp_path, 6, lambda step: step // 10)
        assert len(run.snapshots_by_step()) <= 6
    assert [*run.snapshots_by_step()] == [40, 80, 120, 160, 200]
    written(tmp_path, 205)  # an end between milestones
    thin(tmp_path, 6, lambda step: step // 10)
    assert [*run.snapshots_by_step()] == [40, 80, 120, 160, 200, 205]
    written(tmp_path, 210)
    thin(tmp_path, 6, lambda step: step // 10)
    assert [*run.snapshots_by_step()] == [40, 80, 120, 160, 200, 210]


def test_all_are_kept_without_a_limit(tmp_path: Path) -> None:
    run = written(tmp_path, *range(1, 9))
    thin(tmp_path, None, lambda step: step)
    assert [*run.snapshots_by_step()] == [*range(1, 9)]


def test_snapshots_of_an_abandoned_future_are_moved_aside(tmp_path: Path) -> None:
    run = written(tmp_path, 10, 20, 30)
    move_later_snapshots(tmp_path, 10)
    assert steps_of(run) == [10]
    assert sorted(path.name for path in run.snapshots.glob("superseded_*/*")) == [
        "step_00000020.pt",
        "step_00000030.pt",
    ]
    move_later_snapshots(tmp_path, 10)
    assert len([*run.snapshots.glob("superseded_*")]) == 1
