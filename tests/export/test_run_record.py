import json
from pathlib import Path
from typing import Any

import pytest

from ddpm_cli.export.run_record import PNG, record_of


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return the checkpoint of a run of 30 steps that was evaluated at steps 20 and 30."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "samples").mkdir()
    for step in (10, 20, 30):
        (tmp_path / f"samples/step_{step:08d}.png").write_bytes(PNG + bytes([step]))
    (tmp_path / "metrics.csv").write_text("step,images,loss\n10,80,0.5\n20,160,0.25\n30,240,0.125\n3")
    lines = [evaluation(20, "ema", 3.0), evaluation(30, "model", 2.0), evaluation(30, "ema", 1.0)]
    (tmp_path / "evaluations.jsonl").write_text("\n".join([lines[0], "no json", "[1]", *lines[1:], '{"step": 30, "w']))
    return tmp_path / "checkpoints/step_00000030.pt"


def evaluation(step: int, kind: str, nll: float) -> str:
    return json.dumps({"step": step, "weights": kind, "metrics": {"nll": nll}})


@pytest.mark.parametrize(
    ("step", "loss", "nll"), [(30, 0.125, [1.0]), (20, 0.25, [3.0]), (25, 0.25, []), (5, None, [])]
)
def test_record_of_a_checkpoint(checkpoint: Path, step: int, loss: float | None, nll: list[float]) -> None:
    record = record_of(checkpoint, step, "ema")
    assert record.loss == loss
    assert [entry["metrics"]["nll"] for entry in record.evaluations] == nll
    last = {30: 30, 25: 20, 20: 20, 5: None}[step]
    assert record.grid == (None if last is None else PNG + bytes([last]))


def test_record_is_empty_outside_a_run(checkpoint: Path, tmp_path: Path) -> None:
    moved: Any = tmp_path / "elsewhere.pt"
    assert record_of(moved, 30, "ema") == record_of(tmp_path / "model.safetensors", 30, "ema")
    assert record_of(moved, 30, "ema").grid is None


def test_links_and_malformed_files_are_skipped(checkpoint: Path, tmp_path: Path) -> None:
    run = checkpoint.parent.parent
    (tmp_path / "secret").write_bytes(PNG + b"secret")
    grid = run / "samples/step_00000030.png"
    grid.unlink()
    grid.symlink_to(tmp_path / "secret")
    assert record_of(checkpoint, 30, "ema").grid is None
    grid.unlink()
    grid.write_text("no picture")
    assert record_of(checkpoint, 30, "ema").grid is None
    (run / "metrics.csv").unlink()
    (run / "evaluations.jsonl").unlink()
    record = record_of(checkpoint, 30, "ema")
    assert (record.loss, record.evaluations) == (None, [])
