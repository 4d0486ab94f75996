import json
import math
from pathlib import Path

import pytest

from ddpm_cli.evaluation.record import append, run_of, to_json


def test_lines_are_added(tmp_path: Path) -> None:
    append({"a": 1}, tmp_path)
    append({"b": {"c": [1.5, "x"]}}, tmp_path)
    lines = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"b": {"c": [1.5, "x"]}}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(value: float) -> None:
    text = to_json({"a": value, "b": {"c": (1.0, value)}, "d": [value, True, None, "NaN"]})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": {"c": [1.0, None]},
        "d": [None, True, None, "NaN"],
    }


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append({"a": 1}, tmp_path / "nowhere")
    assert "evaluations.jsonl: cannot be written (No such file or directory)" in caplog.text


def test_which_run_a_checkpoint_is_of(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/last.pt"
    assert run_of(checkpoint) is None  # no notes of a run there
    (tmp_path / "run/.hydra").mkdir(parents=True)
    assert run_of(checkpoint) == tmp_path / "run"
    assert run_of(tmp_path / "run/elsewhere/last.pt") is None
