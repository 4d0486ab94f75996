"""Each path through the commands: train, resume with the same bits, sample, measure."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_cli.config import EdmWeighting
from ddpm_cli.training.start import _with_sigma_data
from tests.conftest import TINY, Result, composed

Run = Callable[..., Result]

PATHS = {
    "edm": ["schedule=edm", "prediction=edm", "timestep_sampler=log_normal"],
    "flow": ["schedule=flow", "prediction=flow", "timestep_sampler=logit_normal", "schedule.shift=2"],
    "preconditioned": ["prediction=edm", "timestep_sampler=low_discrepancy", "weighting=edm"],
}
FEW = ["schedule.timesteps=40", "train.milestone_every=2", "train.steps=4"]


@pytest.mark.parametrize("name", PATHS)
def test_path_from_training_to_measuring(name: str, run: Run, tmp_path: Path) -> None:
    typed = [*TINY, *PATHS[name], *FEW]
    for out in ("whole", "stopped"):
        result = run("train", *typed, f"out={out}")
        assert result.code == 0, result.err
    result = run("train", "resume=stopped/checkpoints/step_00000002.pt")
    assert result.code == 0, result.err
    whole, resumed = (torch.load(f"{out}/checkpoints/last.pt", weights_only=True) for out in ("whole", "stopped"))
    assert resumed["step"] == 4
    assert all(torch.equal(whole["model"][key], resumed["model"][key]) for key in whole["model"])
    assert (whole["config"]["sigma_data"] == "auto") == (name == "flow")
    sampled = run("sample", "ckpt=whole", "n=2", "npz=true", "sampler=heun", "sampler.steps=3", "out=samples")
    assert sampled.code == 0, sampled.err
    with np.load("samples/samples.npz") as arrays:
        assert arrays["images"].std() > 5
    measured = run("evaluate", "ckpt=whole", "metrics=[nll]", "n=2", "out=measured")
    assert measured.code == 0, measured.err
    refused = run("export", "ckpt=whole", "format=diffusers", "out=pipeline")
    assert refused.code == 2
    assert not (tmp_path / "pipeline").exists()


def test_sigma_data_is_that_of_the_data(run: Run) -> None:
    """The digits of scikit-learn in [-1, 1] have a standard deviation of 0.75."""
    assert run("train", *TINY, "schedule=edm", "prediction=edm", "train.steps=1", "out=own").code == 0
    config = torch.load("own/checkpoints/last.pt", weights_only=True)["config"]
    assert config["sigma_data"] == pytest.approx(0.75, abs=0.01)
    assert (
        run("train", *TINY, "schedule=edm", "prediction=edm", "sigma_data=0.5", "train.steps=1", "out=given").code == 0
    )
    assert torch.load("given/checkpoints/last.pt", weights_only=True)["config"]["sigma_data"] == 0.5


@pytest.mark.parametrize(
    ("typed", "run_wide", "of_weighting"),
    [
        (["prediction=v"], "auto", None),
        (["prediction=edm"], 0.7, None),
        (["weighting=edm"], 0.7, 0.7),
        (["weighting=edm", "sigma_data=0.3"], 0.3, 0.3),
        (["weighting=edm", "weighting.sigma_data=0.4", "prediction=edm"], 0.7, 0.4),
        (["loss=ect", "loss.weight=edm", "sampler=consistency"], 0.7, None),
        (["loss=ect", "sampler=consistency"], "auto", None),
    ],
)
def test_what_depends_on_sigma_data_has_a_number(typed: list[str], run_wide: Any, of_weighting: float | None) -> None:
    table: Any = SimpleNamespace(std=lambda: 0.7)
    config = _with_sigma_data(composed(*TINY, *typed), table)
    assert config.sigma_data == run_wide
    assert (config.weighting.sigma_data if isinstance(config.weighting, EdmWeighting) else None) == of_weighting
