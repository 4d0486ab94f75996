import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddpm_cli.evaluation.tradeoff import save_tradeoff


def evaluation(folder: Path, sampler: str, nfe: int, run: str = "one", weights: str = "ema", **metrics: float) -> None:
    folder.mkdir(parents=True)
    record: dict[str, Any] = {
        "metrics": metrics,
        "floor": dict.fromkeys(metrics, 0.5),
        "intervals": {"fd_classifier": [1.0, 9.0]},
        "sampler": {"name": sampler},
        "nfe": nfe,
        "weights": weights,
        "ckpt": f"/runs/{run}/checkpoints/last.pt",
        "n": 100,
    }
    (folder / "evaluation.json").write_text(json.dumps(record))


@pytest.mark.figures
def test_table_has_a_row_for_each_job_and_metric(tmp_path: Path) -> None:
    evaluation(tmp_path / "10", "ddim", 50, fd_classifier=2.0)
    evaluation(tmp_path / "2", "ddim", 10, fd_classifier=4.0, kd_classifier=0.1, kd_classifier_std=0.2)
    evaluation(tmp_path / "samples", "ddpm", 10, fd_classifier=8.0)  # not a job
    (tmp_path / "3").mkdir()  # a job that failed
    save_tradeoff(tmp_path)
    with (tmp_path / "tradeoff.csv").open(newline="") as stream:
        rows = [(row["job"], row["sampler"], row["nfe"], row["metric"], row["value"]) for row in csv.DictReader(stream)]
    assert rows == [
        ("2", "ddim", "10", "fd_classifier", "4.0"),
        ("2", "ddim", "10", "kd_classifier", "0.1"),
        ("10", "ddim", "50", "fd_classifier", "2.0"),
    ]
    with Image.open(tmp_path / "tradeoff.png") as plot:
        assert plot.size == (640, 400)


def test_plot_distinguishes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ddpm_cli.evaluation.tradeoff.save_tradeoff_plot", lambda *what: drawn.append(what))
    evaluation(tmp_path / "0", "ddim", 50, fd_classifier=2.0)
    evaluation(tmp_path / "1", "ddim", 10, fd_classifier=4.0)
    save_tradeoff(tmp_path)
    evaluation(tmp_path / "2", "ddim", 10, "two", fd_classifier=8.0)
    save_tradeoff(tmp_path)
    (one, *_), (both, *_) = drawn
    assert one == {"ddim": [(10, 4.0, 1.0, 9.0), (50, 2.0, 1.0, 9.0)]}
    assert {name: [point[:2] for point in points] for name, points in both.items()} == {
        "ddim of one/checkpoints/last.pt": [(10, 4.0), (50, 2.0)],
        "ddim of two/checkpoints/last.pt": [(10, 8.0)],
    }


def test_metric_of_a_plugin_is_plotted_if_no_distance_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ddpm_cli.evaluation.tradeoff.save_tradeoff_plot", lambda *what: drawn.append(what))
    monkeypatch.setattr("ddpm_cli.evaluation.tradeoff.plugin_metrics", lambda: {"sharpness": None})
    evaluation(tmp_path / "0", "ddim", 50, sharpness=2.0)
    save_tradeoff(tmp_path)
    assert drawn[0][:3] == ({"ddim": [(50, 2.0, 2.0, 2.0)]}, "sharpness", 0.5)
    with (tmp_path / "tradeoff.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["value"], row["low"], row["high"]) == ("2.0", "", "")  # no interval


def test_sweep_over_lengths_is_plotted_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ddpm_cli.evaluation.tradeoff.save_tradeoff_plot", lambda *what: drawn.append(what))
    evaluation(tmp_path / "0", "ddim", 50, weights="ema:0.1", fd_classifier=2.0)
    evaluation(tmp_path / "1", "ddim", 50, weights="ema:0.02", fd_classifier=4.0)
    evaluation(tmp_path / "2", "ddim", 50, weights="model", fd_classifier=8.0)
    save_tradeoff(tmp_path)
    (lines, metric, floor, path, over) = drawn[0]
    assert lines == {"ddim": [(0.02, 4.0, 1.0, 9.0), (0.1, 2.0, 1.0, 9.0)]}
    assert (metric, floor, path.name, over) == ("fd_classifier", 0.5, "averages.png", "relative length of the average")
    with (tmp_path / "averages.csv").open(newline="") as stream:
        assert [row["weights"] for row in csv.DictReader(stream)] == ["ema:0.1", "ema:0.02", "model"]
    assert not (tmp_path / "tradeoff.csv").exists()


def test_lines_over_lengths_are_named_by_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ddpm_cli.evaluation.tradeoff.save_tradeoff_plot", lambda *what: drawn.append(what))
    for i, (nfe, weights) in enumerate((nfe, f"ema:{length}") for nfe in (10, 50) for length in (0.05, 0.1)):
        evaluation(tmp_path / str(i), "ddim", nfe, weights=weights, fd_classifier=2.0)
    save_tradeoff(tmp_path)
    assert {name: len(points) for name, points in drawn[0][0].items()} == {"ddim, 10 calls": 2, "ddim, 50 calls": 2}


def test_nothing_is_written_without_samples(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    bound = {"n": 4, "standard_error": 0.1}
    record = {"metrics": {"nll": 3.0}, "nll": bound, "ckpt": "/runs/one/checkpoints/last.pt", "weights": "ema"}
    (tmp_path / "0/evaluation.json").write_text(json.dumps(record))
    save_tradeoff(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0"]
