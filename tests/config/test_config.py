"""Configs: each option composes, builds and survives a checkpoint, and values out of range are refused."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ddpm_cli.checkpoints.stored_config import train_config
from ddpm_cli.config import GROUPS, implementation_of
from ddpm_cli.diffusion.predictions import parameterization
from ddpm_cli.diffusion.schedules import betas_of, path_of
from ddpm_cli.errors import UserError
from ddpm_cli.models import build_network
from ddpm_cli.sampling.build import network_of
from tests.conftest import composed

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIONS = [
    f"{group}={file.stem}"
    for group in [*(base.group for base in GROUPS), "experiment"]
    for file in sorted((CONFIGS / group).glob("*.yaml"))
]

REQUIRED_BY_OPTION = {
    "dataset=image_folder": ["dataset.root=/pictures"],
    "dataset=parquet": ["dataset.root=/data"],
    "dataset=shards": ["dataset.root=/shards"],
    "dataset=swiss_roll": ["model=mlp"],
    "model=mlp": ["dataset=swiss_roll"],
    "model=ddpm_cifar10": ["dataset=cifar10"],
    "model=improved_cifar10": ["dataset=cifar10"],
    "schedule=edm": ["prediction=edm"],
    "schedule=flow": ["prediction=flow"],
    "loss=hybrid": ["variance=learned_range"],
    "weighting=edm": ["weighting.sigma_data=0.5"],  # which is null until the data are read
}
"""Overrides without which some options are invalid or incomplete."""


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_composes_builds_and_survives_a_checkpoint(option: str) -> None:
    config = composed(option, *REQUIRED_BY_OPTION.get(option, []))
    assert train_config(asdict(config)) == config

    path = path_of(config.schedule)
    assert path.signal.shape == path.sigma.shape == (config.schedule.timesteps,)
    for part in (config.loss, config.sampler, config.timestep_sampler):
        assert callable(implementation_of(part))
    weights = implementation_of(config.weighting)(parameterization(config.prediction, 0.5), torch.tensor([0.1, 10.0]))
    assert weights.shape == (2,)
    assert (weights > 0).all()
    with torch.device("meta"):  # computes shapes only
        network = network_of(config, ["cat", "dog"])
        x = torch.empty(2, *config.dataset.shape)
        output = network(x, torch.empty(2), torch.zeros(2, dtype=torch.int64))
    outputs = 2 if config.variance == "learned_range" else 1
    assert output.shape == (2, outputs * x.shape[1], *x.shape[2:])


@pytest.mark.parametrize("model", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("size", ["28", "32", "[32,48]"])
def test_unet_sizes_accept_28_32_and_non_square_images(model: str, size: str) -> None:
    config = composed(f"model={model}", f"dataset.image_size={size}")
    assert config.model.width % 32 == 0
    with torch.device("meta"):
        x = torch.empty(1, *config.dataset.shape)
        assert build_network(config.model, 1)(x, torch.empty(1)).shape == x.shape


OUT_OF_RANGE = [
    "train.steps=0",
    "train.steps=null",
    "train.epochs=3",
    "train.batch_size=0",
    "train.accumulate=3",
    "train.optimizer=sgd",
    "train.lr=0",
    "train.lr=nan",
    "train.betas=[0.9]",
    "train.betas=[0.9,1]",
    "train.weight_decay=-1",
    "train.warmup_steps=-1",
    "train.lr_decay=step",
    "train.grad_clip=0",
    "train.ema_decay=1",
    "train.precision=fp8",
    "train.seed=-1",
    "train.log_every=0",
    "train.milestone_every=0",
    "train.samples=0",
    "prediction=noise",
    "schedule.timesteps=0",
    "schedule=linear schedule.beta_start=0",
    "schedule=linear schedule.beta_end=1",
    "schedule=linear schedule.beta_end=0.00001",
    "schedule=linear schedule.timesteps=20",
    "model.width=0",
    "model.width=30",
    "model.multipliers=[]",
    "model.multipliers=[0]",
    "model.blocks=0",
    "model.heads=0",
    "model.head_dim=0",
    "model.attention=[none]",
    "model.attention=[none,none,quadratic]",
    "model.dropout=1",
    "model.groups=5",
    "model.patch_size=0",
    "sampler.steps=0",
    "sampler.steps=1001",
    "sampler=ddim sampler.eta=2",
    "dataset.channels=2",
    "dataset.image_size=0",
    "dataset.image_size=[28,28,28]",
    "dataset.image_size=28.5",
    "dataset.image_size=30",
]


@pytest.mark.parametrize("override", OUT_OF_RANGE)
def test_value_out_of_range_is_one_line_that_names_the_key(override: str) -> None:
    with pytest.raises(UserError) as caught:
        composed(*override.split())
    message = str(caught.value)
    key = "train.steps" if override == "train.epochs=3" else override.split()[-1].split("=")[0]
    key = "model.groups" if override == "model.width=30" else key
    key = "model.attention" if override.startswith("model.multipliers=[0") else key
    assert "\n" not in message
    assert key in message or (override.startswith("model.multipliers") and "model." in message)


def test_fsdp_with_fp16_is_rejected() -> None:
    with pytest.raises(UserError, match=r"^train.precision=fp16: not with distributed.strategy=fsdp; use bf16 or fp32"):
        composed("train.precision=fp16", "distributed.strategy=fsdp")


def test_error_names_usable_image_sizes() -> None:
    with pytest.raises(UserError, match=r"image_size=30: must be divisible by 4 for this model: 28 or 32 would do"):
        composed("dataset.image_size=30")
    with pytest.raises(UserError, match="24 or 32 would do"):
        composed("model=ddpm_cifar10")  # 28 pixels, halved three times


def test_shape_and_flip_of_each_dataset() -> None:
    assert composed("dataset=fashion_mnist").dataset.shape == (1, 28, 28)
    assert composed("dataset=cifar10").dataset.shape == (3, 32, 32)
    assert composed("dataset.image_size=[32,64]").dataset.shape == (1, 32, 64)
    flips = {name: composed(f"dataset={name}").dataset.flip for name in ("fashion_mnist", "cifar10", "emoji", "digits")}
    assert flips == {"fashion_mnist": False, "cifar10": True, "emoji": False, "digits": False}


def test_annotated_experiment_has_the_values_of_the_annotated_diffusion_model() -> None:
    config = composed("experiment=annotated")
    assert config.dataset.flip
    assert (config.schedule.timesteps, config.schedule.beta_start, config.schedule.beta_end) == (
        300,
        1e-4,
        0.02,
    )
    assert not config.schedule.rescale
    assert betas_of(config.schedule)[-1].item() == pytest.approx(0.02)
    assert (config.loss.name, config.loss.delta) == ("huber", 1.0)
    assert (config.train.optimizer, config.train.lr, config.train.batch_size) == ("adam", 1e-3, 128)
    assert (config.train.epochs, config.train.steps) == (6, None)
    assert replace(config.model, self_condition=True).self_condition


def test_defaults_of_training() -> None:
    """Check the values that the published results were trained with, so that they do not change by accident."""
    config = composed()
    train = config.train
    assert (config.dataset.name, config.schedule.name, config.loss.name, config.sampler.name) == (
        "fashion_mnist", "cosine", "l2", "dpmpp_2m",
    )  # fmt: skip
    assert (config.prediction, config.variance, config.guidance_scale, config.compile) == (
        "v",
        "fixed_small",
        1.0,
        None,
    )
    assert (train.steps, train.batch_size, train.accumulate, train.seed, train.samples) == (20_000, 128, 1, 0, 64)
    assert (train.optimizer, train.lr, train.betas, train.weight_decay) == ("muon", 1e-3, [0.9, 0.999], 0.0)
    assert (train.warmup_steps, train.lr_decay, train.grad_clip) == (500, "constant", 1.0)
    assert (train.ema_decay, train.ema_warmup, train.ema_start) == (0.999, True, 0)
    assert (train.log_every, train.milestone_every, train.max_bad_steps) == (50, 1000, 10)
