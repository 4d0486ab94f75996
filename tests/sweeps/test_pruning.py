"""The rule by which runs of a sweep are ended early, and its file."""

import math
from pathlib import Path

import pytest

from ddpm_cli.sampling.milestone import Milestone
from ddpm_cli.sweeps.pruning import Pruner, Rung, is_among_best, is_pruned, read_rungs, rung_of
from tests.conftest import composed

TABLE = [
    # job, value, best third of the values so far, whether the job goes on
    (0, 0.9, "0.9", True),
    (1, 0.8, "0.8", True),
    (2, 0.85, "0.8", False),
    (3, 0.7, "0.7", True),
    (4, 0.75, "0.7", False),
    (5, 0.75, "0.7, 0.75", True),  # the second best of six; equal values have the same place
    (6, math.nan, "0.7, 0.75", False),
    (7, 0.6, "0.6, 0.7", True),
    (8, 0.72, "0.6, 0.7, 0.72", True),
    (9, 0.73, "0.6, 0.7, 0.72", False),
]
"""Computed by hand for a reduction factor of 3."""


@pytest.mark.parametrize(
    ("first", "factor", "rungs"), [(1, 3, [1, 3, 9, 27]), (2, 2, [2, 4, 8, 16, 32]), (5, 4, [5, 20])]
)
def test_milestones_of_rungs(first: int, factor: int, rungs: list[int]) -> None:
    found = {milestone: rung for milestone in range(1, 41) if (rung := rung_of(milestone, first, factor)) is not None}
    assert found == {milestone: rung for rung, milestone in enumerate(rungs)}


@pytest.mark.parametrize("row", TABLE)
def test_best_third_goes_on(row: tuple[int, float, str, bool]) -> None:
    number, value, _, goes_on = row
    assert is_among_best(value, [other for _, other, _, _ in TABLE[:number]], 3) == goes_on


def milestone(number: int, loss: float) -> Milestone:
    none = Path()
    return Milestone(number, 10 * number, 100, loss, none, none, none)


def pruner(folder: Path, job: int, *overrides: str) -> Pruner:
    config = composed("dataset=digits", "sweep.prune=asha", *overrides)
    return Pruner(folder, job, config.sweep, config.train, "cpu")


def test_jobs_share_a_file(tmp_path: Path) -> None:
    for job, value, _, goes_on in TABLE:
        assert pruner(tmp_path, job)(milestone(1, value)) != goes_on
        assert is_pruned(tmp_path, job) != goes_on
    found = read_rungs(tmp_path)
    assert [(row.job, row.rung, row.pruned) for row in found] == [(job, 0, not on) for job, _, _, on in TABLE]
    assert [row.value for row in found if row.job != 6] == [value for job, value, _, _ in TABLE if job != 6]


def test_rungs_are_compared_separately(tmp_path: Path) -> None:
    assert not pruner(tmp_path, 0)(milestone(1, 0.5))
    assert not pruner(tmp_path, 1)(milestone(3, 0.9))  # the first one there
    assert pruner(tmp_path, 2)(milestone(3, 0.95))
    assert not pruner(tmp_path, 3)(milestone(2, 9.9))  # no rung
    assert not pruner(tmp_path, 4)(milestone(10, 9.9))  # the end of the run
    assert read_rungs(tmp_path) == [Rung(0, 0, 0.5, False), Rung(1, 1, 0.9, False), Rung(2, 1, 0.95, True)]


def test_last_value_of_a_job_counts(tmp_path: Path) -> None:
    """A resumed job may reach a milestone again. Its own value is not compared with itself."""
    first = pruner(tmp_path, 0)
    assert [first(milestone(1, value)) for value in (0.5, 0.6, 0.7)] == [False] * 3
    assert not pruner(tmp_path, 1)(milestone(1, 0.65))
