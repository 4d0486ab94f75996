import json
import math
from pathlib import Path

import pytest

from ddpm_cli.evaluation.record import append, to_json


def test_records_are_appended_as_lines(tmp_path: Path) -> None:
    append({"a": 1}, tmp_path)
    append({"b": {"c": [1.5, "x"]}}, tmp_path)
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"b": {"c": [1.5, "x"]}}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_become_null(value: float) -> None:
    text = to_json({"a": value, "b": {"c": (1.0, value)}, "d": [value, True, None, "NaN"]})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": {"c": [1.0, None]},
        "d": [None, True, None, "NaN"],
    }


def test_failure_to_write_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append({"a": 1}, tmp_path / "nowhere")
    assert "evaluations.jsonl: cannot be written (No such file or directory)" in caplog.text
