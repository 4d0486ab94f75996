"""The commands as functions: `ddpm_cli.train`, `sample` and `evaluate`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

import ddpm_cli
from ddpm_cli.errors import UserError
from ddpm_cli.sampling.milestone import Milestone
from tests.conftest import TINY

MILESTONES = ["train.steps=6", "train.milestone_every=2"]


def test_milestones_are_reported_and_may_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Milestone] = []

    def end_at_4(milestone: Milestone) -> bool:
        assert milestone.checkpoint.is_file()
        assert milestone.samples.is_file()
        seen.append(milestone)
        return milestone.step == 4

    loss = ddpm_cli.train(*TINY, *MILESTONES, "out=run", on_milestone=end_at_4)
    assert ([milestone.step for milestone in seen], seen[-1].loss) == ([2, 4], loss)
    assert not Path("run/checkpoints/step_00000006.pt").exists()
    ddpm_cli.train("resume=run", on_milestone=lambda milestone: seen.append(milestone))
    assert [milestone.step for milestone in seen] == [2, 4, 6]


def test_a_callback_may_change_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    def change(milestone: Milestone) -> None:
        os.chdir(tmp_path / "other")

    ddpm_cli.train(*TINY, *MILESTONES, "out=run", on_milestone=change)
    assert (tmp_path / "run/checkpoints/step_00000006.pt").is_file()
    assert list((tmp_path / "other").iterdir()) == []


def test_samples_and_evaluations_are_those_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ddpm_cli.train(*TINY, "steps=2", "out=run")
    assert sorted(path.name for path in ddpm_cli.sample("ckpt=run", "n=3", "out=new").glob("images/*")) == [
        f"0000{i}.png" for i in range(3)
    ]
    record = ddpm_cli.evaluate("ckpt=run", "metrics=[nll]", "n=2", "batch_size=2", "device=cpu", "out=measured")
    assert record == json.loads(Path("measured/evaluation.json").read_text())
    assert record["command"] == "ddpm-evaluate ckpt=run 'metrics=[nll]' n=2 batch_size=2 device=cpu out=measured"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lr=-1"], "train.lr=-1.0: must be"),
        (["schedule=cosin"], "schedule=cosin: must be .*; did you mean schedule=cosine?"),
        (["schedule=linear,cosine"], "schedule=linear,cosine: has several values; call the function once for each"),
        (["-m", "loss=l1,l2"], "-m: is an option of the command, and the function takes overrides only"),
        (["--help"], "--help: is an option of the command"),
        ([["dataset=digits", "steps=4"]], r"\['dataset=digits', 'steps=4'\]: must be a string"),
        (["dataset=digits steps=4"], "dataset=digits steps=4"),
        (["dataset=[digits"], r"dataset=\[digits"),
        (["plugins=[./none.py]"], r"plugins=\[./none.py\]: no such file"),
        (["schedule=cosine", "schedule.beta_end=1"], "schedule.beta_end: only .* has this key"),
        (["sweep.resume=none"], "sweep.resume=none: "),
        (["resume=none"], "resume=none: "),
    ],
)
def test_wrong_configs_raise_the_errors_of_the_command(overrides: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ddpm_cli.train(*overrides)


def test_a_program_that_uses_hydra_keeps_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        ddpm_cli.train(*TINY, "steps=1", "out=run")
        assert compose("train").dataset.name == "fashion_mnist"
