"""What is read of run folders, whole and broken."""

import logging
import math
import os
from pathlib import Path

import pytest

from ddpm_cli.errors import UserError
from ddpm_cli.report.runs import MAX_NOTES, Run, find_runs, read_run
from tests.report.folders import a_run, evaluate


def read(folder: Path) -> Run:
    return read_run(folder, folder.name)


def test_a_run(tmp_path: Path) -> None:
    run = read(a_run(tmp_path / "it", "schedule=cosine", "train.lr=0.5", milestones=[20, 40, 100], film=True))
    assert run.settings["schedule"] == "cosine"
    assert run.settings["train.lr"] == 0.5
    assert run.settings["train.betas"] == [0.9, 0.999]
    assert run.overrides == ["schedule=cosine", "train.lr=0.5"]
    assert [row.step for row in run.rows] == [10, 20, 30, 40]
    assert [row.loss for row in run.rows] == [1.0, 0.5, 0.25, 0.125]
    assert (run.steps, run.planned, run.seconds, run.images_per_second) == (40, 40, 10.0, 102.5)
    assert run.loss == 0.125
    assert list(run.grids) == [20, 40, 100]
    assert run.film is not None


def test_the_final_loss_is_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    losses = [9.0] * 17 + [1.0, 3.0]  # 19 rows: two
    assert read(a_run(tmp_path / "a", losses=losses)).loss == 2
    assert read(a_run(tmp_path / "b", losses=[*losses[:-2], math.nan, 3.0])).loss == 3
    assert math.isnan(read(a_run(tmp_path / "c", losses=[*losses, math.nan])).loss or 0)
    assert math.isnan(read(a_run(tmp_path / "d", losses=[*losses, math.inf])).loss or 0)
    assert read(a_run(tmp_path / "e", losses=[])).loss is None


def test_steps_planned_by_epochs(tmp_path: Path) -> None:
    """0.1 epochs are 80 images, so an epoch is 800: 1.5 of them in batches of 8 are 150 steps."""
    run = read(a_run(tmp_path / "it", "train.steps=null", "train.epochs=1.5"))
    assert run.planned == 150
    assert read(a_run(tmp_path / "new", "train.steps=null", "train.epochs=1.5", losses=[])).planned is None


def test_the_last_value_of_each_metric_wins(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "it")
    evaluate(folder, fid=9.0, nll=4.0)
    evaluate(folder, {"step": 50, "intervals": {"fid": [6, 8]}}, fid=7.0)
    evaluate(folder, {"metrics": None})
    evaluate(folder, fid=math.nan, kid="much", nll=True, **{"x" * 41: 1.0})  # type: ignore[arg-type]
    with (folder / "evaluations.jsonl").open("a") as stream:
        stream.write('[]\n17\n\n{"metrics": {"fid": 1')  # cut
    scores = read(folder).scores
    assert {name: score.value for name, score in scores.items()} == {"fid": 7.0, "nll": 4.0}
    assert (scores["fid"].step, scores["fid"].interval, scores["nll"].interval) == (50, (6, 8), None)
    assert scores["fid"].how == {"split": "test", "n": "100", "weights": "ema", "sampler": "ddim"}


def test_spreads_of_metrics_are_none_themselves(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", scores={"kd_classifier": 0.1, "kd_classifier_std": 0.01})
    assert list(read_run(folder, "run").scores) == ["kd_classifier"]


def test_rows_cut_by_a_crash_or_not_rows(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "it")
    with (folder / "metrics.csv").open("a") as stream:
        stream.write("fifty,1\n60,480,0.6,0.5,0.001,1,0,100,15\n70,560,0.7,0.")
    assert [row.step for row in read(folder).rows] == [10, 20, 30, 40, 60]
    with (folder / "metrics.csv").open("a") as stream:
        stream.write(f"\n80,{'x' * 200_000},1,1,1,1,0,1,1\n90,720,0.9,0.5,0.001,1,0,100,15\n")
    assert [row.step for row in read(folder).rows] == [10, 20, 30, 40, 60]  # a field too long for Python's csv


def test_runs_are_found_at_any_depth_once_and_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("sweep/10", "sweep/9", "sweep/1", "train/digits/x"):
        a_run(tmp_path / name)
    a_run(tmp_path / "sweep/1/inside")  # a run's own affair
    (tmp_path / "sweep/2").mkdir()
    (tmp_path / "sweep/link").symlink_to(tmp_path / "train")
    found = find_runs([f"{tmp_path}/sweep"])
    assert [run.name for run in found] == ["1", "9", "10"]
    found = find_runs([f"{tmp_path}/train", f"{tmp_path}/sweep/9", str(tmp_path)])
    assert [run.name for run in found] == ["train/digits/x", "sweep/9", "sweep/1", "sweep/10"]
    assert [run.name for run in find_runs([f"{tmp_path}/sweep/9"])] == ["9"]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_runs(["nowhere"])
    with pytest.raises(UserError, match="contains no run"):
        find_runs([str(tmp_path)])
    with pytest.raises(UserError, match="cannot be read"):
        find_runs(["x" * 5000])


def test_broken_notes_cost_the_settings_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, notes in enumerate(
        [
            "{",
            "- a list",
            "",
            "!!python/object/apply:os.system [echo]",
            "a: " + "[" * 30_000,
            "x: " + "y" * MAX_NOTES,
        ]
    ):
        folder = a_run(tmp_path / str(i))
        (folder / ".hydra/config.yaml").write_text(notes)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run = read(folder)
        assert run.steps == 40
        assert run.settings == {}
        assert "no settings of a run" in caplog.text


@pytest.mark.parametrize("seed", ["{x: 1}", "{}", "[1]"])
def test_yaml_that_repeats_itself_is_not_unfolded(tmp_path: Path, seed: str) -> None:
    """Ten names in each of eight levels, ten to the eighth in all, in less than a kilobyte."""
    folder = a_run(tmp_path / "it")
    lines = [f"a0: &a0 {seed}"]
    for i in range(1, 9):
        names = ", ".join(f"*a{i - 1}" if seed == "[1]" else f"k{j}: *a{i - 1}" for j in range(10))
        lines.append(f"a{i}: &a{i} " + (f"[{names}]" if seed == "[1]" else f"{{{names}}}"))
    (folder / ".hydra/config.yaml").write_text("\n".join(lines))
    assert read(folder).settings == ({"a0": [1]} if seed == "[1]" else {})


def test_yaml_that_holds_itself(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "it")
    (folder / ".hydra/config.yaml").write_text("a: &a {b: 1, c: *a}\nd: &d [*d]\n")
    assert read(folder).settings["a.b"] == 1


def test_what_is_no_plain_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = a_run(tmp_path / "it")
    os.mkfifo(folder / "evaluations.jsonl")
    (tmp_path / "elsewhere.yaml").write_text("[schedule=cosine]")
    (folder / ".hydra/overrides.yaml").unlink()
    (folder / ".hydra/overrides.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    run = read(folder)
    assert (run.scores, run.overrides) == ({}, [])
    assert "evaluations.jsonl: left out, for it is no plain file" in caplog.text
