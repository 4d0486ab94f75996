"""Register one part of each kind from outside the package, in three places each, and use it in all commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Result

Run = Callable[..., Result]

PARTS = """
from dataclasses import dataclass

import torch
from torch import nn

from ddpm_cli.api import (
    Examples,
    ImageDataset,
    Loss,
    Model,
    Sampler,
    BetaSchedule,
    Step,
    TimestepSampler,
    Uniform,
    Weighting,
    check,
    implements,
)


@dataclass(kw_only=True)
class Jump(Sampler):
    name: str = "jump"
    share: float

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.share <= 1, "sampler.share", self.share, "in (0, 1]")


@implements(Jump)
def jump(denoise, x, process, pairs, noise, share):
    for t, t_prev in pairs:
        x0 = denoise(x, t, None).x0
        x = x0 if t_prev < 0 else (1 - share) * x + share * x0
        yield Step(t, x, x0)


@dataclass(kw_only=True)
class Geometric(BetaSchedule):
    name: str = "geometric"
    ratio: float


@implements(Geometric)
def geometric(timesteps, ratio):
    return 0.01 * ratio ** torch.linspace(0, 1, timesteps, dtype=torch.float64)


@dataclass(kw_only=True)
class LogCosh(Loss):
    name: str = "log_cosh"


@implements(LogCosh)
def log_cosh(predicted):
    return predicted.weighted_mean(lambda output, target: (output - target).cosh().log())


@dataclass(kw_only=True)
class Power(Weighting):
    name: str = "power"
    exponent: float


@implements(Power)
def power(prediction, snr, exponent):
    return (snr / (1 + snr)) ** exponent


@dataclass(kw_only=True)
class LateTimesteps(TimestepSampler):
    name: str = "late"
    first: int


@implements(LateTimesteps)
class LateSampler(Uniform):
    def __init__(self, process, device, *, first):
        super().__init__(process, device)
        self.first = first

    def sample(self, count, generator):
        t, weights = super().sample(count, generator)
        return t.clamp(min=self.first), weights


@dataclass(kw_only=True)
class Pointwise(Model):
    name: str = "pointwise"

    def check_against(self, dataset):
        pass


@implements(Pointwise)
class PointwiseNetwork(nn.Module):
    def __init__(self, in_channels, out_channels, classes, *, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.SiLU(), nn.Conv2d(width, out_channels, 1))

    def forward(self, x, t, y=None):
        return self.layers(x)


@dataclass(kw_only=True)
class Stripes(ImageDataset):
    name: str = "stripes"


@implements(Stripes)
def stripes(dataset, train):
    values = torch.zeros(40, *dataset.shape, dtype=torch.uint8)
    values[..., ::2] = 255
    return Examples(values, None, [])
"""

YAML = {
    "sampler/jump": ["steps: 4", "sections: null", "spacing: time", "thresholding: clip", "share: 0.5"],
    "schedule/geometric": ["timesteps: 20", "zero_terminal_snr: false", "ratio: 30.0"],
    "loss/log_cosh": [],
    "weighting/power": ["exponent: 0.5"],
    "timestep_sampler/late": ["first: 5"],
    "model/pointwise": ["width: 8", "dropout: 0.0", "time_scale: 1.0", "self_condition: false"],
    "dataset/stripes": ["root: null", "image_size: 8", "channels: 1", "flip: false"],
}
CHOICES = [name.replace("/", "=") for name in YAML]


@pytest.fixture
def toy_parts(tmp_path_factory: pytest.TempPathFactory, plugin_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a plugin with the parts in `PARTS` and `YAML`."""
    folder = tmp_path_factory.mktemp("plugin") / "toy_parts"
    for name, values in YAML.items():
        path = folder / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        group, option = name.split("/")
        path.write_text("\n".join([f"defaults: [/schema/{group}/{option}@_here_, _self_]", *values]))
    (folder / "__init__.py").write_text(PARTS)
    monkeypatch.setenv("DDPM_PLUGINS", str(folder))


def test_external_parts_train_resume_and_sample(toy_parts: None, run: Run, tmp_path: Path) -> None:
    listed = run("train", "--help")
    assert listed.code == 0
    for choice in CHOICES:
        group, name = choice.split("=")
        line = next(line for line in listed.out.splitlines() if line.startswith(f"  {group} "))
        assert name in line.split()

    few = ["train.steps=2", "train.batch_size=4", "train.samples=2", "train.precision=fp32", "device=cpu"]
    trained = run("train", *CHOICES, *few, "prediction=x0", "sampler.share=0.25", "out=run")
    assert trained.code == 0, trained.err
    config = torch.load("run/checkpoints/last.pt", weights_only=True)["config"]
    assert [config[choice.split("=")[0]]["name"] for choice in CHOICES] == [choice.split("=")[1] for choice in CHOICES]
    assert config["sampler"]["share"] == 0.25

    assert run("train", "resume=run", "train.steps=3").code == 0
    for i, chosen in enumerate([[], ["sampler=jump", "sampler.share=1"], ["sampler=ddim", "sampler.steps=3"]]):
        sampled = run("sample", "ckpt=run", "n=2", "device=cpu", *chosen, f"out=samples{i}")
        assert sampled.code == 0, sampled.err
        assert (tmp_path / f"samples{i}/images/00001.png").is_file()


def test_invalid_options_of_external_parts_are_one_line(toy_parts: None, run: Run) -> None:
    for typed, message in {
        ("sampler=jump", "sampler.share=2"): "sampler.share=2.0: must be in (0, 1]",
        ("sampler.share=0.5",): "sampler.share: only sampler=jump has this key",
        ("sampler=jmp",): "sampler=jmp: must be consistency, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m",
    }.items():
        result = run("train", *typed)
        assert result.code == 2
        assert message in result.err
        assert result.err.count("\n") == 1
