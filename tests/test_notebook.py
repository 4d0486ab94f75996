"""`from ddpm_cli import load` draws the same samples as ddpm-sample, which Jupyter displays."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli import load
from ddpm_cli.errors import UserError
from ddpm_cli.images.png_gif import to_uint8
from ddpm_cli.notebook import Samples, _stock_sampler
from tests.conftest import TINY, TINY_POINTS, Result, composed, train_into

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_into(folder / "classes", *TINY, "train.steps=2", "conditioning=class")
    train_into(folder / "points", *TINY_POINTS, "train.steps=2")
    return folder


def drawn(run: Run, *overrides: str) -> np.ndarray:
    """Return what ddpm-sample writes: images (N, H, W, C) uint8, or points."""
    result = run("sample", *overrides, "npz=true", "device=cpu", "out=drawn")
    assert result.code == 0, result.err
    with np.load("drawn/samples.npz") as found:
        return np.asarray(found["points" if "points" in found else "images"])


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ([], {}),
        (["sampler=dpmpp_2m", "sampler.steps=5"], {"sampler": "dpmpp_2m", "steps": 5}),
        (["sampler=ddpm"], {"sampler": "ddpm"}),
        (["class=[3,7]", "guidance_scale=2"], {"classes": [3, "7"], "guidance_scale": 2.0}),
        (["class=5"], {"classes": 5}),
    ],
    ids=["plain", "sampler and steps", "ancestral", "classes and guidance", "a class"],
)
def test_the_samples_are_those_of_ddpm_sample(run: Run, runs: Path, typed: list[str], asked: dict[str, Any]) -> None:
    theirs = drawn(run, f"ckpt={runs / 'classes'}", "n=7", "seed=7", *typed)
    model = load(runs / "classes", device="cpu")
    ours = model.sample(7, seed=7, **asked).images
    assert (ours.shape, ours.dtype) == ((7, 1, 8, 8), torch.float32)
    assert np.array_equal(to_uint8(ours).permute(0, 2, 3, 1).numpy(), theirs)
    in_threes = to_uint8(model.sample(7, seed=7, batch_size=3, **asked).images).permute(0, 2, 3, 1).numpy()
    assert np.abs(in_threes.astype(int) - theirs).max() <= 1  # the rounding depends on the batch size


def test_points(run: Run, runs: Path) -> None:
    theirs = drawn(run, f"ckpt={runs / 'points'}", "n=20", "seed=1")
    samples = load(str(runs / "points"), device="cpu").sample(20, seed=1)
    assert np.array_equal(samples.images.numpy(), theirs)
    assert samples.labels is None
    assert Image.open(io.BytesIO(samples._repr_png_())).format == "PNG"


def test_steps_are_those_of_the_run_s_sampler(run: Run, runs: Path) -> None:
    theirs = drawn(run, f"ckpt={runs / 'classes'}", "n=2", "sampler=dpmpp_2m", "sampler.steps=7")
    ours = load(runs / "classes", device="cpu").sample(2, steps=7).images
    assert np.array_equal(to_uint8(ours).permute(0, 2, 3, 1).numpy(), theirs)


def test_samples_are_shown_and_saved_as_a_grid(runs: Path, tmp_path: Path) -> None:
    samples = load(runs / "classes", device="cpu").sample(4, classes=["3", "7"])
    assert (len(samples), repr(samples)) == (4, "<4 samples of 1x8x8>")
    assert samples.labels == ["3", "7", "3", "7"]
    samples.save(tmp_path / "grid.png")
    shown, saved = Image.open(io.BytesIO(samples._repr_png_())), Image.open(tmp_path / "grid.png")
    assert np.array_equal(np.asarray(shown), np.asarray(saved))
    grid = Samples(samples.images, None).picture()
    corner = np.asarray(grid)[2:58:7, 2:58:7]  # the first image: each pixel is enlarged to 7x7, after a gap of 2
    assert np.array_equal(corner, to_uint8(samples.images)[0, 0].numpy())
    with pytest.raises(UserError, match=r"path=grid\.x: .*name a file that ends in \.png"):
        samples.save("grid.x")


def test_attributes_of_a_model(runs: Path) -> None:
    model = load(runs / "classes", device="cpu")
    assert model.config.schedule.timesteps == 50
    assert model.classes == list("0123456789")
    assert isinstance(model.network, torch.nn.Module)
    assert not model.network.training
    assert repr(model).startswith("<unet of 0.0")
    assert "1x8x8 digits, 10 classes, T=50" in repr(model)


@pytest.mark.parametrize(
    "name", ["ddpm", "ddim", "euler", "heun", "edm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"]
)
def test_stock_samplers_are_those_of_the_yaml(name: str) -> None:
    assert _stock_sampler(name) == composed("ckpt=x", f"sampler={name}", command="sample").sampler


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "n=0: must be in 1..10000000"),
        ({"n": 1, "seed": -1}, r"seed=-1: must be in 0..2\*\*63-1"),
        ({"n": 1, "batch_size": 0}, "batch_size=0: must be in 1..1000000"),
        ({"n": 1, "sampler": "eluer"}, "sampler=eluer: must be consistency, ddim, ddpm, dpmpp_2m"),
        ({"n": 1, "steps": 51}, "sampler.steps=51: must be in 1..50"),
        ({"n": 1, "classes": "cat"}, "class=cat: must be a number in 0..9"),
        ({"n": 1, "guidance_scale": -1.0}, "guidance_scale=-1.0: must be in"),
    ],
)
def test_bad_sampling_arguments(runs: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(runs / "classes", device="cpu").sample(**asked)


def test_bad_checkpoints(runs: Path) -> None:
    with pytest.raises(UserError, match="ckpt=nowhere: no such file or folder"):
        load("nowhere")
    with pytest.raises(UserError, match="weights=best: must be ema, model, or"):
        load(runs / "classes", weights="best")
    with pytest.raises(UserError, match="precision=half: must be auto, fp32, fp32_strict, bf16 or fp16"):
        load(runs / "classes", precision="half")


def test_importing_the_package_is_cheap() -> None:
    """The commands import ddpm_cli, so importing it must not import torch."""
    code = "import sys, ddpm_cli; ddpm_cli.load; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ddpm_cli" in loaded
    assert not {"torch", "numpy", "hydra", "yaml", "PIL"} & set(loaded)
