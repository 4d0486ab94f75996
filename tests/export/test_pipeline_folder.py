"""Compare exported and imported pipelines with the diffusers library: the same noise must give the same images."""

import inspect
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor, nn

from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.config import TrainConfig
from ddpm_cli.diffusion.sampling import threshold
from ddpm_cli.errors import UserError
from ddpm_cli.export import ddpm_scheduler
from ddpm_cli.export.pipeline_folder import pipeline_to_weights, read_pipeline, write_pipeline
from ddpm_cli.sampling.build import build_denoiser, network_of
from ddpm_cli.sampling.noise import ImageNoise
from ddpm_cli.sampling.sample_generator import SampleGenerator
from tests.conftest import composed

CPU = torch.device("cpu")
SMALL = [
    "dataset=digits",
    "dataset.image_size=16",
    "model=ddpm_cifar10",
    "model.width=8",
    "model.groups=4",
    "model.multipliers=[1,2]",
    "model.attention=[none,full]",
    "model.blocks=1",
    "sampler=ddpm",
    "schedule.timesteps=60",
    "prediction=eps",
]
KINDS = {
    "linear": ["schedule=linear"],
    "cosine": ["schedule=cosine"],
    "cosine with other constants": ["schedule=cosine", "schedule.s=0.02", "prediction=v"],
    "sigmoid, large variance": ["schedule=sigmoid", "variance=fixed_large"],
    "quadratic, not clipped": ["schedule=quadratic", "prediction=v", "sampler.thresholding=none"],
    "x0": ["schedule=linear", "prediction=x0"],
    "constant": ["schedule=constant"],
    "zero terminal snr": ["schedule=linear", "schedule.zero_terminal_snr=true", "prediction=v"],
    "learned variance": [
        "schedule=linear",
        "variance=learned_range",
        "loss=hybrid",
        "model.scale_shift=true",
        "model.heads=2",
    ],
}


def random_network(config: TrainConfig) -> nn.Module:
    """Return a network whose weights are small enough to leave most pixels unclipped."""
    torch.manual_seed(0)
    network = network_of(config, []).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.12)
    return network


def generate(config: TrainConfig, network: nn.Module, seed: int) -> Tensor:
    """Generate three images with ddpm_cli: (3, 1, 16, 16) in [-1, 1]."""
    denoiser = build_denoiser(config, network, CPU, torch.float32)
    generator = SampleGenerator(denoiser, config.sampler, config.dataset.shape, CPU)
    *_, last = generator.steps(seed, [0] * 3, range(3))
    return last.x.clamp(-1, 1)


def generate_with_diffusers(pipeline: Any, seed: int, timesteps: int) -> Tensor:
    """Generate three images with diffusers, using the noise of `generate`."""
    pipeline.set_progress_bar_config(disable=True)
    noise = ImageNoise(seed, range(3), (1, 16, 16), CPU)
    with (
        patch.object(pipeline_ddpm, "randn_tensor", lambda shape, **_: noise()),
        patch.object(scheduling_ddpm, "randn_tensor", lambda shape, **_: noise()),
    ):
        images = pipeline(batch_size=3, num_inference_steps=timesteps, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_exported_pipeline_generates_the_same_images(overrides: list[str], tmp_path: Path) -> None:
    config = composed(*SMALL, *overrides)
    network = random_network(config)
    write_pipeline(tmp_path, Weights(config, [], 3, "ema", dict(network.state_dict())))
    theirs = generate_with_diffusers(DDPMPipeline.from_pretrained(tmp_path), 7, 60)
    ours = generate(config, network, 7)
    assert (ours.abs() < 1).float().mean() > 0.5
    assert torch.allclose(ours, theirs, atol=1e-4)


def save_pipeline(folder: Path, flat: bool, **scheduler: Any) -> Any:
    """Create a pipeline with diffusers and save it. flat: use the layout of google/ddpm-cifar10-32."""
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=4,
    )
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.12)
    pipeline = DDPMPipeline(unet.eval(), DDPMScheduler(60, **scheduler))
    pipeline.save_pretrained(folder)
    if flat:
        for part in ("unet", "scheduler"):
            for file in (folder / part).iterdir():
                file.rename(folder / file.name)
            (folder / part).rmdir()
    return pipeline


SCHEDULERS: list[dict[str, Any]] = [
    {"variance_type": "fixed_large"},  # as in google/ddpm-cifar10-32
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"beta_schedule": "scaled_linear", "prediction_type": "sample", "clip_sample": False},
    {"beta_schedule": "sigmoid", "variance_type": "fixed_small_log"},
    {"thresholding": True},  # with its default sample_max_value=1.0: clipping
    {"thresholding": True, "clip_sample": False, "dynamic_thresholding_ratio": 0.5},
    {"clip_sample_range": 3.0, "thresholding": True},  # which thresholding replaces
    {"beta_start": 0.001, "beta_end": 0.05, "timestep_spacing": "linspace"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
]


@pytest.mark.parametrize(
    ("scheduler", "flat"),
    [
        *((scheduler, False) for scheduler in SCHEDULERS),
        (SCHEDULERS[0], True),
        *(pytest.param(scheduler, True, marks=pytest.mark.slow) for scheduler in SCHEDULERS[1:]),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else "flat" if given else "folders",
)
def test_imported_pipeline_generates_the_same_images(scheduler: dict[str, Any], flat: bool, tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, flat, **scheduler)
    weights = pipeline_to_weights("path", read_pipeline("path", tmp_path), composed(*SMALL), composed(*SMALL).dataset)
    network = network_of(weights.config, [])
    network.load_state_dict(weights.tensors)
    ours = generate(weights.config, network.eval(), 3)
    assert torch.allclose(ours, generate_with_diffusers(pipeline, 3, 60), atol=1e-4)


def test_export_and_import_round_trip(tmp_path: Path) -> None:
    config = composed(*SMALL, "schedule=cosine", "variance=learned_range", "loss=hybrid", "schedule.timesteps=60")
    tensors = dict(random_network(config).state_dict())
    write_pipeline(tmp_path, Weights(config, [], 3, "ema", tensors))
    back = pipeline_to_weights("path", read_pipeline("path", tmp_path), composed(), config.dataset)
    for group in ("dataset", "model", "schedule", "sampler", "prediction", "variance"):
        assert getattr(back.config, group) == getattr(config, group)
    assert all(torch.equal(back.tensors[name], tensors[name]) for name in tensors)


SCHEDULER_FIELDS: dict[str, tuple[str, Any]] = {
    "beta_end": ("kept", 0.05),
    "beta_schedule": ("kept", "scaled_linear"),
    "beta_start": ("kept", 0.001),
    "clip_sample": ("kept", False),
    "clip_sample_range": ("refused", 3.0),
    "dynamic_thresholding_ratio": ("unused", 0.9),  # without thresholding
    "num_train_timesteps": ("kept", 60),
    "prediction_type": ("kept", "sample"),
    "rescale_betas_zero_snr": ("kept", True),
    "sample_max_value": ("unused", 1.5),  # without thresholding
    "steps_offset": ("refused", 1),
    "thresholding": ("unused", True),  # with sample_max_value=1.0 that is clip_sample=True
    "timestep_spacing": ("kept", "linspace"),
    "trained_betas": ("refused", [0.1, 0.2]),
    "variance_type": ("kept", "fixed_large"),
}
"""What becomes of each setting of DDPMScheduler when it alone is not the default."""


@pytest.mark.parametrize("field", sorted(inspect.signature(DDPMScheduler.__init__).parameters.keys() - {"self"}))
def test_each_setting_of_the_scheduler_is_kept_or_refused(field: str) -> None:
    assert field in SCHEDULER_FIELDS, "a new setting of diffusers: keep it, or refuse it by name"
    fate, value = SCHEDULER_FIELDS[field]
    if fate == "refused":
        with pytest.raises(UserError, match=f"^{field}="):
            ddpm_scheduler.from_scheduler_config({field: value})
    else:
        changed = ddpm_scheduler.from_scheduler_config({field: value}) != ddpm_scheduler.from_scheduler_config({})
        assert changed == (fate == "kept")


def other_schedulers() -> list[type]:
    """Return the schedulers of diffusers that a DDPMPipeline may be saved with."""
    return [kind for kind in DDPMScheduler().compatibles if kind is not DDPMScheduler]


def test_no_other_scheduler_is_taken_for_a_ddpm_scheduler() -> None:
    assert "DDIMScheduler" in {kind.__name__ for kind in other_schedulers()}
    for kind in other_schedulers():
        names = inspect.signature(kind.__init__).parameters.keys() - {"self"}
        with pytest.raises(UserError, match=f"^_class_name={kind.__name__}: must be DDPMScheduler"):
            ddpm_scheduler.from_scheduler_config({"_class_name": kind.__name__} | dict.fromkeys(names))


def test_another_pipeline_with_the_same_parts_is_rejected(tmp_path: Path) -> None:
    """DDIMPipeline makes a DDIMScheduler of the same file."""
    save_pipeline(tmp_path, flat=False)
    file = tmp_path / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "DDIMPipeline"}))
    with pytest.raises(UserError, match=r"model_index.json: _class_name=DDIMPipeline: must be DDPMPipeline"):
        read_pipeline("path", tmp_path)


def test_dynamic_thresholds_without_a_limit_are_kept() -> None:
    """The limit that ddpm-export writes is above all estimates of x0."""
    settings = ddpm_scheduler.to_scheduler_config(composed(*SMALL, "sampler.thresholding=dynamic"))
    assert ddpm_scheduler.from_scheduler_config(settings).sampler.thresholding == "dynamic"


def test_defaults_are_those_of_ddpm_scheduler() -> None:
    theirs = {key: value for key, value in DDPMScheduler().config.items() if not key.startswith("_")}
    assert {key: value for key, value in ddpm_scheduler.DEFAULTS.items() if not key.startswith("_")} == theirs


def test_dynamic_thresholds_are_those_of_the_scheduler() -> None:
    settings = ddpm_scheduler.to_scheduler_config(composed(*SMALL, "sampler.thresholding=dynamic"))
    scheduler = DDPMScheduler.from_config(settings)
    x0 = 2 * torch.randn(3, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(threshold(x0, "dynamic"), scheduler._threshold_sample(x0))


@pytest.mark.parametrize(
    ("ours", "theirs"), [("stride", "leading"), ("time", "linspace"), ("trailing", "trailing"), ("karras", "linspace")]
)
def test_spacings_are_those_of_the_scheduler(ours: str, theirs: str) -> None:
    settings = ddpm_scheduler.to_scheduler_config(composed(*SMALL, f"sampler.spacing={ours}"))
    assert settings["timestep_spacing"] == theirs
    again = ddpm_scheduler.from_scheduler_config(settings).sampler.spacing
    assert again == ("time" if ours == "karras" else ours)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name=PNDMScheduler: must be DDPMScheduler"),
        ({"skip_prk_steps": True}, "skip_prk_steps: not a supported setting of a DDPMScheduler"),
        (
            {"_class_name": "DDIMScheduler", "set_alpha_to_one": True},
            "_class_name=DDIMScheduler: must be DDPMScheduler",
        ),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas=[0.1, 0.2]: must be null; a list of betas cannot be imported"),
        ({"steps_offset": 1}, "steps_offset=1: must be 0, because all timesteps are used"),
        ({"timestep_spacing": "karras"}, "timestep_spacing=karras: must be leading, linspace or trailing"),
        ({"thresholding": True, "sample_max_value": 1.5}, "sample_max_value=1.5: must be 1.0 (clip), or 1e+09 or more"),
        (
            {"thresholding": True, "sample_max_value": 1e9, "dynamic_thresholding_ratio": 0.9},
            "dynamic_thresholding_ratio=0.9: must be 0.995",
        ),
        ({"clip_sample": "false"}, "clip_sample=false: must be true or false"),
        ({"num_train_timesteps": 60.5}, "num_train_timesteps=60.5: must be a whole number"),
        ({"rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr=1: must be true or false"),
        ({"clip_sample": None}, "clip_sample=None: must be true or false"),
        ({"beta_schedule": "laplace"}, "beta_schedule=laplace: must be linear, scaled_linear, sigmoid or"),
        ({"variance_type": "learned"}, "variance_type=learned: must be fixed_small, fixed_small_log, fixed_large or"),
        ({"variance_type": "learned_range"}, "variance_type=learned_range: needs 2 out_channels, not 1"),
        ({"variance_type": ["a"]}, "variance_type=['a']: must be a text"),
        ({"prediction_type": "flow"}, "prediction_type=flow: must be epsilon, sample or v_prediction"),
        ({"clip_sample_range": 3.0}, "clip_sample_range=3.0: must be 1.0"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps=many: must be a whole number"),
        ({"beta_start": -1}, "schedule.beta_start=-1.0: must be in [1e-8, 1)"),
    ],
)
def test_unsupported_scheduler_settings_are_rejected(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    save_pipeline(tmp_path, flat=False)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as raised:
        read_pipeline("path", tmp_path)
    assert str(raised.value).startswith(f"path={tmp_path}: scheduler/scheduler_config.json: {named}")


def test_missing_and_damaged_files_are_rejected(tmp_path: Path) -> None:
    save_pipeline(tmp_path, flat=False)
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        UserError, match=r"no unet/diffusion_pytorch_model.safetensors; a .bin file is not read, because it can"
    ):
        read_pipeline("path", tmp_path)
    (tmp_path / "scheduler/scheduler_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"scheduler_config.json: not settings of the diffusers library"):
        read_pipeline("path", tmp_path)
    (tmp_path / "unet/config.json").unlink()
    with pytest.raises(UserError, match=r"unet: no config.json; name the folder of a DDPMPipeline"):
        read_pipeline("path", tmp_path)


def test_mismatched_weights_and_data_are_rejected(tmp_path: Path) -> None:
    save_pipeline(tmp_path, flat=False)
    file = tmp_path / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [8, 32]}))
    pipeline = read_pipeline("path", tmp_path)
    with pytest.raises(UserError, match="does not fit the network in its config"):
        pipeline_to_weights("path", pipeline, composed(*SMALL), composed(*SMALL).dataset)
    with pytest.raises(
        UserError, match="dataset=cifar10: has examples of 3x32x32, but the network expects images of 1"
    ):
        pipeline_to_weights("path", pipeline, composed(*SMALL), composed("dataset=cifar10").dataset)
