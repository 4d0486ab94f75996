import json
from pathlib import Path

import pytest

from tests.benchmarks.measure import Spread
from tests.benchmarks.report import Section, format_spread, machine, markdown, plain, save

SECTION = Section("Title", ["a", "longer"], [["x", "1"], ["wider", "2"]], ["A note."], {"seconds": [1.0]})


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0333333, "0.0333"), (4.567, "4.57"), (81.23, "81.2"), (82_768.9, "82,800"), (0.0, "0")],
)
def test_significant_digits(value: float, shown: str) -> None:
    assert plain(value) == shown


def test_zero_spread_is_not_shown() -> None:
    assert format_spread(Spread(2.0, 1.0, 3.0)) == "2 (1 to 3)"
    assert format_spread(Spread(2.0, 2.0, 2.0)) == "2"


def test_columns_are_aligned() -> None:
    lines = markdown(SECTION).splitlines()
    assert lines[2:6] == [
        "| a     | longer |",
        "| ----- | ------ |",
        "| x     | 1      |",
        "| wider | 2      |",
    ]
    assert lines[-1] == "- A note."


def test_both_files_contain_machine_and_results(tmp_path: Path) -> None:
    about = machine(threads=2)
    save(tmp_path / "new" / "found", about, "noise", {"step": SECTION})
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert found["step"]["raw"] == {"seconds": [1.0]}
    assert found["machine"]["threads"] == 2
    assert found["machine"]["packages"].keys() >= {"torch", "torchvision"}
    text = (tmp_path / "new" / "found.md").read_text()
    assert about["cpu"] in text
    assert markdown(SECTION) in text
