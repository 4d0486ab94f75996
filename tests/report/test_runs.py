"""Tests of finding and reading run folders, including damaged ones."""

import logging
import math
import os
from pathlib import Path

import pytest

from ddpm_cli.checkpoints.run_folder import MAX_CONFIG_BYTES
from ddpm_cli.errors import UserError
from ddpm_cli.report.runs import Run, find_runs, read_run
from tests.report.folders import a_run, evaluate


def read_folder(folder: Path) -> Run:
    return read_run(folder, folder.name)


def test_read_run(tmp_path: Path) -> None:
    run = read_folder(a_run(tmp_path / "run", "schedule=cosine", "train.lr=0.5", milestones=[20, 40, 100], film=True))
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


def test_final_loss_is_mean_of_last_tenth(tmp_path: Path) -> None:
    losses = [9.0] * 17 + [1.0, 3.0]  # the last tenth of 19 rows is two rows
    assert read_folder(a_run(tmp_path / "a", losses=losses)).loss == 2
    assert read_folder(a_run(tmp_path / "b", losses=[*losses[:-2], math.nan, 3.0])).loss == 3
    assert math.isnan(read_folder(a_run(tmp_path / "c", losses=[*losses, math.nan])).loss or 0)
    assert math.isnan(read_folder(a_run(tmp_path / "d", losses=[*losses, math.inf])).loss or 0)
    assert read_folder(a_run(tmp_path / "e", losses=[])).loss is None


def test_planned_steps_from_epochs(tmp_path: Path) -> None:
    """An epoch has 80 / 0.1 = 800 images, so 1.5 epochs in batches of 8 are 150 steps."""
    run = read_folder(a_run(tmp_path / "run", "train.steps=null", "train.epochs=1.5"))
    assert run.planned == 150
    assert read_folder(a_run(tmp_path / "new", "train.steps=null", "train.epochs=1.5", losses=[])).planned is None


def test_last_value_of_each_metric_is_used(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    evaluate(folder, fid=9.0, nll=4.0)
    evaluate(folder, {"step": 50, "intervals": {"fid": [6, 8]}}, fid=7.0)
    evaluate(folder, {"metrics": None})
    evaluate(folder, fid=math.nan, kid="much", nll=True, **{"x" * 41: 1.0})  # type: ignore[arg-type]
    with (folder / "evaluations.jsonl").open("a") as stream:
        stream.write('[]\n17\n\n{"metrics": {"fid": 1')  # a truncated line
    scores = read_folder(folder).scores
    assert {name: score.value for name, score in scores.items()} == {"fid": 7.0, "nll": 4.0}
    assert (scores["fid"].step, scores["fid"].interval, scores["nll"].interval) == (50, (6, 8), None)
    assert scores["fid"].settings == {"split": "test", "n": "100", "weights": "ema", "sampler": "ddim"}


def test_standard_deviations_are_not_metrics(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", scores={"kd_classifier": 0.1, "kd_classifier_std": 0.01})
    assert list(read_run(folder, "run").scores) == ["kd_classifier"]


def test_invalid_and_truncated_rows_are_skipped(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as stream:
        stream.write("fifty,1\n60,480,0.6,0.5,0.001,1,0,100,15\n70,560,0.7,0.")
    assert [row.step for row in read_folder(folder).rows] == [10, 20, 30, 40, 60]
    with (folder / "metrics.csv").open("a") as stream:
        stream.write(f"\n80,{'x' * 200_000},1,1,1,1,0,1,1\n90,720,0.9,0.5,0.001,1,0,100,15\n")
    assert [row.step for row in read_folder(folder).rows] == [
        10,
        20,
        30,
        40,
        60,
    ]  # the field exceeds the limit of the csv module


def test_find_runs_at_any_depth_without_duplicates_in_numerical_order(tmp_path: Path) -> None:
    for name in ("sweep/10", "sweep/9", "sweep/1", "train/digits/x"):
        a_run(tmp_path / name)
    a_run(tmp_path / "sweep/1/inside")  # folders inside a run are not searched
    (tmp_path / "sweep/2").mkdir()
    (tmp_path / "sweep/link").symlink_to(tmp_path / "train")
    found = find_runs([f"{tmp_path}/sweep"])
    assert [run.name for run in found] == ["1", "9", "10"]
    found = find_runs([f"{tmp_path}/train", f"{tmp_path}/sweep/9", str(tmp_path)])
    assert [run.name for run in found] == ["train/digits/x", "sweep/9", "sweep/1", "sweep/10"]
    assert [run.name for run in find_runs([f"{tmp_path}/sweep/9"])] == ["9"]


def test_folders_without_runs_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_runs(["nowhere"])
    with pytest.raises(UserError, match="contains no run"):
        find_runs([str(tmp_path)])
    with pytest.raises(UserError, match="cannot be read"):
        find_runs(["x" * 5000])


def test_invalid_config_yaml_only_loses_the_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, text in enumerate(
        [
            "{",
            "- a list",
            "",
            "!!python/object/apply:os.system [echo]",
            "a: " + "[" * 30_000,
            "x: " + "y" * MAX_CONFIG_BYTES,
        ]
    ):
        folder = a_run(tmp_path / str(i))
        (folder / ".hydra/config.yaml").write_text(text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run = read_folder(folder)
        assert run.steps == 40
        assert run.settings == {}
        assert "no settings found" in caplog.text


@pytest.mark.parametrize("seed", ["{x: 1}", "{}", "[1]"])
def test_exponential_yaml_aliases_are_not_expanded(tmp_path: Path, seed: str) -> None:
    """Eight levels of ten aliases would expand to 10^8 items from less than a kilobyte of YAML."""
    folder = a_run(tmp_path / "run")
    lines = [f"a0: &a0 {seed}"]
    for i in range(1, 9):
        names = ", ".join(f"*a{i - 1}" if seed == "[1]" else f"k{j}: *a{i - 1}" for j in range(10))
        lines.append(f"a{i}: &a{i} " + (f"[{names}]" if seed == "[1]" else f"{{{names}}}"))
    (folder / ".hydra/config.yaml").write_text("\n".join(lines))
    assert read_folder(folder).settings == ({"a0": [1]} if seed == "[1]" else {})


def test_recursive_yaml(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    (folder / ".hydra/config.yaml").write_text("a: &a {b: 1, c: *a}\nd: &d [*d]\n")
    assert read_folder(folder).settings["a.b"] == 1


def test_pipes_and_symlinks_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = a_run(tmp_path / "run")
    os.mkfifo(folder / "evaluations.jsonl")
    (tmp_path / "elsewhere.yaml").write_text("[schedule=cosine]")
    (folder / ".hydra/overrides.yaml").unlink()
    (folder / ".hydra/overrides.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    run = read_folder(folder)
    assert (run.scores, run.overrides) == ({}, [])
    assert "evaluations.jsonl: " in caplog.text
