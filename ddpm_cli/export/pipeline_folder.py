"""Write and read the folder of a `DDPMPipeline` of diffusers, in the layouts of all its releases."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.checkpoints.format import LONGEST, check_matches
from ddpm_cli.checkpoints.loading import weights_like
from ddpm_cli.checkpoints.safetensors_file import Weights, read_tensors, write_tensors
from ddpm_cli.config import L2, Dataset, DdpmUNet, Hybrid, TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.export import ddpm_scheduler, unet2d
from ddpm_cli.files import write

VERSION = "0.30.0"
"""The oldest release that can read the written folder."""
MAX_SETTINGS = 2**20
"""Maximum bytes of a file of settings, which may list thousands of betas."""
TENSORS = "diffusion_pytorch_model.safetensors"
PIPELINE = {
    "_class_name": "DDPMPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


@dataclass(frozen=True)
class Pipeline:
    """The content of a folder. shape: (channels, height, width) of an image. tensors: by UNet2DModel's names."""

    model: DdpmUNet
    process: ddpm_scheduler.Process
    shape: tuple[int, int, int]
    file: Path
    tensors: dict[str, Tensor]


def write_pipeline(folder: Path, weights: Weights) -> None:
    """Write a DDPMPipeline of `weights`. Call `unet2d.check_expressible` first. Raises `NoRoom` if the disk is full."""
    config = weights.config
    assert isinstance(config.model, DdpmUNet)
    for name in ("unet", "scheduler"):
        (folder / name).mkdir()
    _write_settings(folder / "unet" / "config.json", unet2d.to_settings(config))
    write_tensors(folder / "unet" / TENSORS, unet2d.to_weights(config.model, weights.tensors), {})
    _write_settings(folder / "scheduler" / "scheduler_config.json", ddpm_scheduler.to_settings(config))
    _write_settings(folder / "model_index.json", PIPELINE)


def read_pipeline(key: str, folder: Path) -> Pipeline:
    """Read the DDPMPipeline in `folder`.

    Its files are in unet/ and scheduler/, or all in the folder itself, as in google/ddpm-cifar10-32. Weights are read
    from .safetensors only, because a .bin is a pickle, which could run code. Raises `UserError` if a file is missing or
    damaged, or if a setting is not supported; `key` is named in the message.
    """
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    where = unet / "config.json"
    settings = _read_settings(key, where)
    try:
        model, (height, width), channels, out_channels = unet2d.from_settings(settings)
        where = scheduler / "scheduler_config.json"
        process = ddpm_scheduler.from_settings(_read_settings(key, where))
        expected = channels * (2 if process.variance == "learned_range" else 1)
        if out_channels != expected:
            raise UserError(f"variance_type={process.variance}: needs {expected} out_channels, not {out_channels}")
    except UserError as error:
        raise UserError(f"{key}={folder}: {where.relative_to(folder)}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"{key}={folder}: {where.relative_to(folder)}: not settings of the diffusers library"
        ) from error
    file = unet / TENSORS
    if not file.is_file():
        raise UserError(
            f"{key}={folder}: no {file.relative_to(folder)}; a .bin is not read, because it may contain code: load it "
            "with diffusers and save it again (save_pretrained)"
        )
    return Pipeline(model, process, (channels, height, width), file, read_tensors(key, file)[0])


def weights_of(key: str, pipeline: Pipeline, defaults: TrainConfig, dataset: Dataset) -> Weights:
    """Convert the network of a pipeline to weights of ours, at step 0, trained on `dataset`.

    defaults: values for everything that a pipeline does not contain, such as the settings of training. The weights are
    stored as EMA weights, because these are used for sampling. Raises `UserError` if the weights do not match the
    settings of the pipeline or the data.
    """
    if dataset.shape != pipeline.shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (dataset.shape, pipeline.shape))
        raise UserError(
            f"dataset={dataset.name}: has examples of {ours}, and the network is for images of {theirs}; name the data "
            "that it was trained on, with dataset.channels and dataset.image_size"
        )
    process = pipeline.process
    learned = process.variance == "learned_range"
    config = replace(
        defaults,
        dataset=dataset,
        model=pipeline.model,
        schedule=process.schedule,
        sampler=process.sampler,
        prediction=process.prediction,
        variance=process.variance,
        loss=Hybrid(vlb_weight=0.001) if learned else L2(),
    )
    like = weights_like(config, [])
    try:
        tensors = unet2d.from_weights(pipeline.model, pipeline.tensors, like)
    except (UserError, RuntimeError) as error:  # RuntimeError: shapes that torch cannot concatenate
        raise UserError(f"{key}={pipeline.file}: {' '.join(str(error).split())[:LONGEST]}; name another") from error
    check_matches(key, pipeline.file, {"ema": tensors}, {"ema": like})
    return Weights(config, [], 0, "ema", tensors)


def _write_settings(file: Path, settings: dict[str, Any]) -> None:
    versioned = {"_diffusers_version": VERSION, **settings}
    write(file, f"{json.dumps(versioned, indent=2, sort_keys=True)}\n".encode())


def _read_settings(key: str, file: Path) -> dict[str, Any]:
    if not file.is_file():  # reading a pipe would block
        raise UserError(f"{key}={file.parent}: no {file.name}; name the folder of a DDPMPipeline")
    try:
        settings = json.loads(file.read_text()) if file.stat().st_size <= MAX_SETTINGS else None
    except (OSError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{key}={file}: not settings of the diffusers library; name another folder")
    return settings
