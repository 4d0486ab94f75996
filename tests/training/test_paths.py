"""Each path through the commands: train, resume with the same bits, sample, measure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY, Result

Run = Callable[..., Result]

PATHS = {
    "edm": ["schedule=edm", "prediction=edm", "timestep_sampler=log_normal"],
    "flow": ["schedule=flow", "prediction=flow", "timestep_sampler=logit_normal", "schedule.shift=2"],
    "preconditioned": ["prediction=edm", "timestep_sampler=low_discrepancy"],
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
