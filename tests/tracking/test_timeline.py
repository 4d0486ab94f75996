"""What was seen and what is due, with and without a change of the batch size and of the data."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from ddpm_cli.tracking.timeline import (
    Phase,
    Timeline,
    are_phases,
    images_seen,
    new_timeline,
    resumed_timeline,
    stored_timeline,
)
from tests.conftest import composed


def train(**changes: Any) -> Any:
    return replace(composed().train, **changes)


def changed(**changes: Any) -> Timeline:
    """Return the timeline of a run of 3 steps of 4 images, and then of steps of 6, on 12 images."""
    return resumed_timeline(train(batch_size=6, **changes), 12, [[0, 4, 12]], 3)


def test_examples_and_epochs_count_each_step_with_its_own_size() -> None:
    timeline = changed()
    assert [timeline.images(step) for step in range(6)] == [0, 4, 8, 12, 18, 24]
    assert [timeline.epochs(step) for step in (1, 3, 4, 5)] == [Fraction(1, 3), 1, Fraction(3, 2), 2]
    assert 3 * 6 + timeline.offset == 12  # the first new batch starts where the images before it ended


def test_length_in_epochs_counts_what_was_seen() -> None:
    assert changed(steps=None, epochs=3).steps == 7  # 3 steps of 4 and 4 of 6 are 36 images
    assert changed(steps=None, epochs=2.5).steps == 6
    assert changed(steps=None, epochs=1).steps == 3
    assert changed(steps=None, epochs=0.5).steps == 2  # finished already
    assert changed(steps=9).steps == 9


@pytest.mark.parametrize("examples", [13, 20, 1500])
@pytest.mark.parametrize("batch_size", [1, 8, 50, 186])
@pytest.mark.parametrize("epochs", [0.1, 0.3, 1, 1.1, 2.8])
def test_run_without_a_change_has_the_rounding_of_earlier_versions(
    examples: int, batch_size: int, epochs: float
) -> None:
    """Older runs must be resumed bit for bit, so their milestones and their length stay where they were."""
    timeline = new_timeline(
        train(steps=None, epochs=epochs, batch_size=batch_size, milestone_every=f"{epochs}epochs"), examples
    )
    every = epochs * examples / batch_size
    assert timeline.steps == math.ceil(every)
    for step in range(100):
        assert timeline.milestones_until(step) == math.floor(step / every)
        assert timeline.images(step) == step * batch_size
        assert float(timeline.epochs(step)) == step * batch_size / examples
    assert timeline.offset == 0


def test_milestones_in_epochs_are_where_epochs_end() -> None:
    """12 images: steps of 4 end an epoch at step 3, steps of 6 at 5 and 7; steps of 5 after it at 10."""
    timeline = resumed_timeline(train(batch_size=5, milestone_every="1epoch"), 12, [[0, 4, 12], [3, 6, 12]], 7)
    assert [step for step in range(1, 11) if timeline.is_milestone(step)] == [3, 5, 7, 10]
    assert timeline.milestones_until(7) == 3


def test_milestones_in_steps_do_not_depend_on_the_batch_size() -> None:
    assert [step for step in range(1, 9) if changed(milestone_every=2).is_milestone(step)] == [2, 4, 6, 8]


@pytest.mark.parametrize("every", [1, 3, 50, "0.01epochs", "0.3epochs", "1epoch"])
@pytest.mark.parametrize("steps", [1, 10, 23])
def test_milestones_after_a_step_are_those_that_follow(steps: int, every: object) -> None:
    plain = new_timeline(train(steps=steps, milestone_every=every, batch_size=8), 13)
    for timeline in (plain, changed(steps=steps, milestone_every=every)):
        for step in range(timeline.phases[-1].start, steps + 1):
            later = [at for at in range(step + 1, steps + 1) if at == steps or timeline.is_milestone(at)]
            assert timeline.milestones_after(step) == len(later)


def test_epochs_before_a_change_of_the_data_stay_seen() -> None:
    """2 epochs of 12 images, then the dataset has 24: epoch 3 takes 4 steps of 6."""
    timeline = resumed_timeline(train(steps=None, epochs=3, batch_size=6), 24, [[0, 6, 12]], 4)
    assert [timeline.epochs(step) for step in (4, 6, 8)] == [2, Fraction(5, 2), 3]
    assert timeline.steps == 8
    assert 4 * 6 + timeline.offset == 2 * 24  # where the third epoch starts
    assert timeline.images(8) == 48


def test_a_phase_starts_only_where_something_changes() -> None:
    own = train(batch_size=6)
    stored = [[0, 4, 12], [3, 6, 12]]
    assert resumed_timeline(own, 12, stored, 5).phases == (Phase(0, 4, 12), Phase(3, 6, 12))
    assert resumed_timeline(own, 13, stored, 5).phases == (Phase(0, 4, 12), Phase(3, 6, 12), Phase(5, 6, 13))
    assert resumed_timeline(train(batch_size=2), 12, stored, 3).phases == (Phase(0, 4, 12), Phase(3, 2, 12))
    assert resumed_timeline(train(batch_size=4), 12, stored, 3).phases == (Phase(0, 4, 12),)
    assert resumed_timeline(own, 12, [[0, 4, 12]], 0).phases == (Phase(0, 6, 12),)


def test_unknown_sizes_of_a_dataset_are_those_of_now() -> None:
    """Checkpoints of formats 5 and 6 do not have them."""
    assert resumed_timeline(train(batch_size=4), 12, [[0, 4, 0]], 3).phases == (Phase(0, 4, 12),)
    assert stored_timeline(train(), 12, [[0, 4, 0]]).epochs(3) == 1
    assert images_seen([[0, 4, 0], [3, 6, 0]], 5) == 24


@pytest.mark.parametrize(
    ("phases", "ok"),
    [
        ([[0, 4, 12]], True),
        ([[0, 4, 0], [3, 6, 12]], True),
        ([], False),
        (None, False),
        ([[1, 4, 12]], False),
        ([[0, 4, 12], [6, 4, 12]], False),  # after the step
        ([[0, 4, 12], [3, 4, 12], [3, 6, 12]], False),
        ([[0, 0, 12]], False),
        ([[0, 4, -1]], False),
        ([[0, 4]], False),
        ([[0, 4.0, 12]], False),
        ([[0, True, 12]], False),
        ([[i, 4, 12] for i in range(1001)], False),
    ],
)
def test_phases_in_a_file_are_checked(phases: object, ok: bool) -> None:
    assert are_phases(phases, 5) == ok
