"""The notes of a run: its config now, and the overrides of its start and of its resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpm_cli.checkpoints.notes import Change, current_overrides, note_resume, note_start, read_changes
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.checkpoints.stored_config import from_stored, to_stored
from tests.conftest import TINY, composed


def config_of(*overrides: str) -> Any:
    """Return the config of a run as a checkpoint has it, without what it does not store."""
    return from_stored(to_stored(composed(*TINY, *overrides)))


def started(folder: Path, *overrides: str) -> RunFolder:
    run = RunFolder(folder)
    run.notes.mkdir(parents=True)
    note_start(folder, composed(*TINY, *overrides), [*TINY, *overrides])
    return run


def test_resume_without_changes_changes_no_notes(tmp_path: Path) -> None:
    run = started(tmp_path, "threads=3", "out=here", "sweep.first_rung=2", "train.steps=4")
    before = {path.name: path.read_bytes() for path in run.notes.iterdir()}
    note_resume(tmp_path, config_of("train.steps=4"), 2, ["resume=here"])
    assert {path.name: path.read_bytes() for path in run.notes.iterdir()} == before


def test_changes_are_noted_beside_what_was_typed_at_the_start(tmp_path: Path) -> None:
    run = started(tmp_path, "train.steps=4", "threads=3")
    note_resume(
        tmp_path, config_of("train.steps=8", "train.lr=0.5"), 4, ["resume=here", "train.steps=8", "train.lr=5e-1"]
    )
    noted = yaml.safe_load(run.config.read_text())
    assert (noted["train"]["steps"], noted["train"]["lr"], noted["threads"]) == (8, 0.5, 3)
    assert run.read_overrides() == [*TINY, "train.steps=4", "threads=3"]  # a sweep recognizes its job by them
    assert read_changes(run) == [Change(4, ["train.steps=8", "train.lr=5e-1"])]
    now = current_overrides(run.read_overrides(), read_changes(run))
    assert now == [*TINY, "train.steps=8", "threads=3", "train.lr=5e-1"]
    note_resume(tmp_path, replace(config_of("train.steps=8"), threads=1), 6, ["threads=1"])
    assert yaml.safe_load(run.config.read_text())["threads"] == 1


def test_changes_after_the_step_that_a_run_goes_back_to_are_forgotten(tmp_path: Path) -> None:
    run = started(tmp_path)
    for step, change in ((0, "train.seed=1"), (4, "train.lr=0.5"), (6, "train.lr=0.1")):
        note_resume(tmp_path, config_of(change), step, [change])
    note_resume(tmp_path, config_of("train.steps=9"), 6, ["train.steps=9"])
    expected = [Change(0, ["train.seed=1"]), Change(4, ["train.lr=0.5"]), Change(6, ["train.steps=9"])]
    assert read_changes(run) == expected
    note_resume(tmp_path, config_of(), 4, [])  # the checkpoint of step 4 was written before the change there
    assert read_changes(run) == [Change(0, ["train.seed=1"])]


def test_later_overrides_of_a_key_replace_earlier_ones() -> None:
    changes = [Change(1, ["++train.lr=2"]), Change(2, ["train.lr=3", "device=cpu"])]
    assert current_overrides(["train.lr=1", "loss=l1"], changes) == ["train.lr=3", "loss=l1", "device=cpu"]


def test_run_without_notes_gets_them(tmp_path: Path) -> None:
    config = config_of("dataset=image_folder", "dataset.root=x", "dataset.image_size=8")
    moved = replace(config, dataset=replace(config.dataset, root=str(tmp_path / "new")))
    note_resume(tmp_path, moved, 3, [])
    assert RunFolder(tmp_path).read_config()["dataset"]["root"] == str(tmp_path / "new")


@pytest.mark.parametrize("text", ["5", "[1]", "[{step: a, overrides: [b]}]", "[{step: 1, overrides: [1]}]", "{", "\0"])
def test_invalid_changes_are_skipped(tmp_path: Path, text: str) -> None:
    run = started(tmp_path)
    run.changes.write_text(text)
    assert read_changes(run) == []
    note_resume(tmp_path, config_of(), 3, ["train.lr=1"])
    assert read_changes(run) == [Change(3, ["train.lr=1"])]


@pytest.mark.parametrize("text", ["threads: [[[1]]]", "out: {a: {b: 1}}", "5", "threads: &a [*a]"])
def test_values_that_no_run_writes_are_not_kept(tmp_path: Path, text: str) -> None:
    run = started(tmp_path)
    run.config.write_text(text)
    note_resume(tmp_path, config_of(), 3, [])
    noted = run.read_config()
    assert (noted["threads"], noted["out"]) == ("auto", "")
