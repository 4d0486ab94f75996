"""The checkpoints of a run: finding, pruning, and moving aside those after the step of a resume."""

import math
from pathlib import Path
from typing import Any

import pytest

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.checkpoints.run_checkpoints import (
    find_checkpoint,
    move_later_checkpoints,
    newest_config,
    newest_valid_checkpoint,
    prune,
    save_checkpoint,
)
from ddpm_cli.errors import UserError
from tests.checkpoints.test_format import STATE


def save(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, {**STATE, "step": step}) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "checkpoints").iterdir() if file.is_file())


def last_step(folder: Path) -> int:
    return int(load_checkpoint("ckpt", find_checkpoint("ckpt", str(folder)))["step"])


def test_checkpoints_are_found_by_folder_or_file(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 12)
    assert path == tmp_path / "checkpoints" / "step_00000012.pt"
    assert find_checkpoint("ckpt", str(path)) == path
    assert find_checkpoint("ckpt", str(tmp_path)) == path.with_name("last.pt")
    assert names(tmp_path) == ["last.pt", "step_00000012.pt"]


def test_last_is_the_newest_and_earlier_ones_are_kept(tmp_path: Path) -> None:
    first, _ = save(tmp_path, 12, 13)
    assert load_checkpoint("ckpt", first)["step"] == 12
    assert last_step(tmp_path) == 13


def test_without_hard_links_last_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("os.link", refuse)
    save(tmp_path, 12)
    assert last_step(tmp_path) == 12


def test_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt=/nowhere"):
        find_checkpoint("ckpt", "/nowhere")
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        find_checkpoint("resume", str(tmp_path))


@pytest.mark.parametrize(
    ("keep_last", "window", "kept"),
    [
        (None, math.inf, [0, 10, 15, 20, 25, 30, 40]),
        (3, math.inf, [25, 30, 40]),
        (1, math.inf, [40]),
        (1, 20, [20, 40]),
        (2, 10, [10, 20, 30, 40]),
        (1, 12.5, [15, 25, 40]),
        (10, math.inf, [0, 10, 15, 20, 25, 30, 40]),
    ],
)
def test_pruning(tmp_path: Path, keep_last: Any, window: float, kept: list[int]) -> None:
    for step in (0, 10, 15, 20, 25, 30, 40):
        save(tmp_path, step)
        prune(tmp_path, keep_last, lambda at: math.floor(at / window))
        assert last_step(tmp_path) == step
    assert names(tmp_path) == ["last.pt", *(f"step_{step:08d}.pt" for step in kept)]


def damage(path: Path) -> None:
    """Truncate a checkpoint, but not last.pt, which is a hard link to the same file."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])


def test_newest_valid_checkpoint_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = save(tmp_path, 1, 2, 3)
    assert newest_valid_checkpoint("resume", tmp_path)[0] == third
    damage(third)
    damage(second)
    path, state = newest_valid_checkpoint("resume", tmp_path)
    assert (path, state["step"]) == (first, 1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert str(third) in caplog.messages[0]
    assert str(second) in caplog.messages[1]
    caplog.clear()
    assert newest_config("resume", tmp_path) == (first, state["config"])
    assert caplog.messages == []  # for `newest_valid_checkpoint` logs them


def test_last_is_sufficient_and_none_is_an_error(tmp_path: Path) -> None:
    (only,) = save(tmp_path, 3)
    only.unlink()
    path, state = newest_valid_checkpoint("resume", tmp_path)
    assert (path.name, state["step"]) == ("last.pt", 3)
    damage(path)
    with pytest.raises(UserError, match="none of its checkpoints is valid"):
        newest_valid_checkpoint("resume", tmp_path)
    with pytest.raises(UserError, match="none of its checkpoints is valid"):
        newest_config("resume", tmp_path)


def test_later_checkpoints_are_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2, 3)
    move_later_checkpoints(tmp_path, 3)
    assert not caplog.messages
    move_later_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["last.pt", "step_00000001.pt"]
    assert last_step(tmp_path) == 1
    (aside,) = (tmp_path / "checkpoints").glob("superseded_*")
    assert sorted(path.name for path in aside.iterdir()) == ["step_00000002.pt", "step_00000003.pt"]
    assert str(aside) in caplog.messages[0]
