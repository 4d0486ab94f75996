"""Tests of the comparison of runs and of report.csv."""

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from ddpm_cli.report.runs import Run, find_runs
from ddpm_cli.report.table import (
    command_of,
    csv_of,
    differing,
    higher_is_better,
    is_table,
    measured_differently,
    metrics_of,
    swept,
)
from tests.report.folders import a_run, evaluate


def runs_of(folder: Path, *jobs: Sequence[str]) -> list[Run]:
    for i, overrides in enumerate(jobs):
        a_run(folder / str(i), *overrides)
    return find_runs([str(folder)])


def test_differing_settings(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, ["train.lr=0.1", "out=a"], ["train.lr=0.01", "out=b"])
    assert differing(runs) == {"train.lr": ["0.1", "0.01"]}
    assert differing(runs[:1]) == {}


def test_lists_and_null_are_compared(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, ["train.betas=[0.9,0.99]", "train.steps=null"], ["train.steps=7"])
    assert differing(runs) == {"train.steps": ["null", "7"], "train.betas": ["[0.9, 0.99]", "[0.9, 0.999]"]}


def test_settings_determined_by_the_option_of_their_group_are_excluded(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "schedule=linear")
    a_run(tmp_path / "1", config={"schedule": {"name": "cosine", "timesteps": 50, "s": 0.008}})
    assert differing(find_runs([str(tmp_path)])) == {"schedule": ["linear", "cosine"]}


def test_overridden_settings_and_differences_within_an_option_are_included(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, ["schedule=linear", "schedule.timesteps=9"], ["schedule=cosine"])
    assert differing(runs) == {"schedule": ["linear", "cosine"], "schedule.timesteps": ["9", "100"]}
    a_run(tmp_path / "2", config={"schedule": {"name": "linear", "timesteps": 100, "rescale": False}})
    assert "schedule.rescale" in differing(find_runs([str(tmp_path)]))


def test_overridden_option_is_used_instead_of_the_name(tmp_path: Path) -> None:
    for i, (option, width) in enumerate([("tiny", 8), ("small", 16)]):
        folder = a_run(tmp_path / str(i), config={"model": {"name": "unet", "width": width}})
        (folder / ".hydra/overrides.yaml").write_text(f"[model={option}]")
    assert differing(find_runs([str(tmp_path)])) == {"model": ["tiny", "small"]}
    (tmp_path / "0/.hydra/overrides.yaml").write_text("[]")
    assert differing(find_runs([str(tmp_path)])) == {"model.width": ["8", "16"]}


def test_swept_settings(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, ["loss=l1", "train.lr=0.1", "out=a"], ["loss=l1", "train.lr=0.2"], ["loss=l2"])
    assert swept(runs) == {"loss": ["l1", "l1", "l2"], "train.lr": ["0.1", "0.2", ""]}


def test_metric_order_and_direction(tmp_path: Path) -> None:
    a_run(tmp_path / "0", scores={"nll": 1, "zeta": 1})
    a_run(tmp_path / "1", scores={"recall": 1, "fid": 1})
    assert metrics_of(find_runs([str(tmp_path)])) == ["fid", "recall", "nll", "zeta"]
    higher = ["is", "is_classifier", "precision", "precision_classifier", "recall", "recall_classifier"]
    lower = ["fid", "kid", "nll", "val_loss", "fd_classifier", "kd_classifier"]
    assert [higher_is_better(name) for name in higher + lower] == [True] * 6 + [False] * 6


def test_metrics_measured_with_different_settings(tmp_path: Path) -> None:
    evaluate(a_run(tmp_path / "0", scores={"nll": 1}), fid=3.0, kid=1.0)
    evaluate(a_run(tmp_path / "1", scores={"nll": 2}), {"n": 7, "nfe": 5}, fid=2.0, kid=1.0)
    a_run(tmp_path / "2")
    assert measured_differently(find_runs([str(tmp_path)])) == {"fid, kid": ["n=100, nfe=?", "n=7, nfe=5"]}


def test_command_omits_out_and_quotes_overrides(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, ["train.betas=[0.5, 0.9]", "out=here"])
    assert command_of(run) == "ddpm-train 'train.betas=[0.5, 0.9]'"
    odd = ["a=it's $(rm -rf) `x`\n", 'b="']
    odd_run = Run(run.folder, "", {}, odd, [], {}, {}, None)
    assert shlex.split(command_of(odd_run)) == ["ddpm-train", *odd]


def test_report_csv(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "loss=l1", scores={"fid": 1 / 3})
    a_run(tmp_path / "1", "loss=l2", losses=[1.0, float("nan")])
    text = csv_of(find_runs([str(tmp_path)]))
    assert is_table(text)
    first, second = csv.DictReader(io.StringIO(text))
    assert first == {
        "run": "0",
        "loss": "l1",
        "fid": str(1 / 3),
        "final_loss": "0.125",
        "steps": "40",
        "steps_planned": "40",
        "pruned": "",
        "changes": "",
        "seconds": "10.0",
        "images_per_second": "102.5",
        "path": f"{tmp_path}/0",
        "command": "ddpm-train loss=l1",
    }
    assert (second["fid"], second["final_loss"], second["steps"]) == ("", "nan", "20")
    assert not is_table("run,score\n")
