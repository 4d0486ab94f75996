from pathlib import Path

import pytest

from ddpm_cli.tracking.timeline import new_timeline
from tests.benchmarks.quality import RECIPES, Row, best, milestones, read, section, text, train
from tests.benchmarks.quality_plot import save_quality_plot
from tests.benchmarks.systems.ours import composed

AFTER_1, AFTER_6 = 469, 2813
"""Steps of 128 images in 1 and 6 epochs of 60,000 images."""
ROWS = [
    Row("annotated", AFTER_1, AFTER_1 * 128, 10.0, 30.0, 8.0, 7.5, 8.5, "own", 300, 2000),
    Row("annotated", AFTER_1, AFTER_1 * 128, 10.0, 30.0, 6.0, 5.5, 6.5, "dpmpp_2m", 20, 2000),
    Row("annotated", AFTER_6, AFTER_6 * 128, 60.0, 180.0, 2.0, 1.9, 2.1, "own", 300, 2000),
    Row("quickstart", 75, 4800, 0.5, None, 7.0, 6.9, 7.1, "own", 100, 2000),
    Row("quickstart", 150, 9600, 1.5, None, 5.0, 4.9, 5.1, "own", 100, 2000),
]


def test_quality_csv_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "quality.csv"
    assert read(file) == []
    file.write_text(text(ROWS[::-1]))
    assert sorted(read(file), key=ROWS.index) == ROWS


def test_better_sampler_is_selected() -> None:
    assert [row.distance for row in best(ROWS)] == [6.0, 2.0, 7.0, 5.0]


def test_minutes_are_compared_with_the_plain_reference() -> None:
    lines = {(line[0], line[3]): line[1:3] + line[4:] for line in section(ROWS).rows}
    assert lines["1", "quickstart"] == ["6", "30", "1.5", "20.0"]
    assert lines["1", "annotated"] == ["6", "30", "10", "3.0"]
    assert lines["6", "quickstart"] == ["2", "180", "not reached", ""]


def test_milestones_are_at_the_marks() -> None:
    timeline = new_timeline(composed(*RECIPES["annotated"]).train, 60_000)
    at = [step for step in range(1, AFTER_6 + 1) if timeline.is_milestone(step)]
    assert {AFTER_1, 938, AFTER_6} <= set(at)
    assert timeline.steps == AFTER_6


def test_milestones_exclude_step_0(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step_00000000.pt", "step_00000150.pt", "step_00000075.pt", "last.pt"):
        (folder / name).touch()
    assert [step for step, _ in milestones(tmp_path)] == [75, 150]


@pytest.mark.parametrize(("step", "resumed"), [(10, True), (2813, False)])
def test_unfinished_run_is_resumed(step: int, resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("tests.benchmarks.quality.load_checkpoint", lambda *_: {"step": step})
    monkeypatch.setattr("tests.benchmarks.quality.subprocess.run", lambda words, check: called.append(words))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    train(RECIPES["annotated"], tmp_path)
    assert [words[-1] for words in called] == ([f"resume={tmp_path}"] if resumed else [])


def test_quality_plot(tmp_path: Path) -> None:
    points = [(row.minutes, row.distance, row.low, row.high) for row in ROWS]
    save_quality_plot({"one": points}, {1: 6.0}, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
