"""Tests of the plugin: each part against a closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ddpm_extras import NpzFile, Residual
from ddpm_extras.mean_distance import mean_distance
from ddpm_extras.midpoint import midpoint
from ddpm_extras.npz_file import load
from ddpm_extras.residual import Residual as ResidualNetwork
from torch import Tensor

from ddpm_cli.api import Estimate, Process, UserError


def test_midpoint_follows_the_flow_of_gaussian_data() -> None:
    """The flow maps x = std(T) z to std(0) z, where std(t) is that of x_t, and the error is of second order."""
    process = Process.from_betas(torch.linspace(1e-4, 0.02, 1025, dtype=torch.float64))
    power = torch.tensor(process.alphas_cumprod, dtype=torch.float64)
    variance = 4 * power + 1 - power  # of x_t, for data of standard deviation 2

    def denoise(x: Tensor, t: int, last_x0: Tensor | None) -> Estimate:
        return Estimate(4 * power[t].sqrt() / variance[t] * x)

    def error(stride: int) -> float:
        pairs = [(t, t - stride) for t in range(1024, 0, -stride)]
        z = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
        *_, last = midpoint(denoise, z * variance[-1].sqrt(), process, pairs, lambda: z, last_step="euler")
        return float((last.x - variance[0].sqrt() * z).abs().max())

    assert error(16) < 2e-3
    assert error(32) / error(16) == pytest.approx(4, rel=0.2)


def test_last_step_is_the_estimate_of_x0() -> None:
    process = Process.from_betas(torch.full((4,), 0.1, dtype=torch.float64))
    noise = torch.ones(1, 1)
    steps = list(midpoint(lambda x, t, last: Estimate(x / 2), noise, process, [(3, 1), (1, -1)], lambda: noise, "x0"))
    assert [step.t for step in steps] == [3, 1]
    assert torch.equal(steps[-1].x, steps[-1].x0)


def options(path: Path, **changes: int) -> NpzFile:
    return NpzFile(**{"root": str(path), "image_size": 4, "channels": 3, "flip": False, "held_out": 2, **changes})


def test_npz_file_is_split(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(7) % 3)
    train, test = load(options(tmp_path / "data.npz"), True), load(options(tmp_path / "data.npz"), False)
    assert np.array_equal(torch.cat([train.values, test.values]).permute(0, 2, 3, 1), images)
    assert (len(train), len(test), test.labels.tolist(), test.classes) == (5, 2, [2, 0], ["0", "1", "2"])


def test_other_npz_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(UserError, match=r"dataset.root=.*other.npz: must be a file of images \(N, 4, 4, 3\) uint8"):
        load(options(tmp_path / "other.npz"), True)
    with pytest.raises(UserError, match=r"dataset.root=.*none.npz: must be an npz file with an array named images"):
        load(options(tmp_path / "none.npz"), True)


@pytest.mark.parametrize("classes", [0, 3])
def test_network_returns_its_output_for_any_size(classes: int) -> None:
    network = ResidualNetwork(1, 2, classes, width=8, blocks=2, dropout=0.0, time_scale=1.0)
    y = torch.tensor([0, 3]) if classes else None
    assert network(torch.rand(2, 1, 5, 7), torch.tensor([0, 9]), y).shape == (2, 2, 5, 7)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"model.blocks=0: must be in 1..100"):
        Residual(width=8, blocks=0, dropout=0.0, time_scale=1.0, self_condition=False)


def test_mean_distance() -> None:
    black, gray = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.full((5, 1, 2, 2), 9, dtype=torch.uint8)
    assert mean_distance(black, gray, 0) == 9
    assert mean_distance(gray, gray[:2], 0) == 0
