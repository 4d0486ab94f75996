"""Write and read the folder of a `DDPMPipeline` of diffusers, in the layout of any release."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.checkpoints.format import LONGEST, check_matches
from ddpm_cli.checkpoints.loading import weights_like
from ddpm_cli.checkpoints.run_folder import WEIGHTS, new_folder
from ddpm_cli.checkpoints.safetensors_file import Weights, read_tensors, write_tensors, write_weights
from ddpm_cli.config import L2, Dataset, DdpmUNetOptions, Hybrid, ImportConfig, TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.export import ddpm_scheduler, unet2d
from ddpm_cli.export.settings import require
from ddpm_cli.files import write
from ddpm_cli.shell import override

log = logging.getLogger(__name__)

VERSION = "0.30.0"
"""The oldest release of diffusers that can read the folder."""
MAX_JSON_BYTES = 2**20
"""Maximum size in bytes of a JSON file, which may list thousands of betas."""
TENSORS = "diffusion_pytorch_model.safetensors"
INDEX, CLASS = "model_index.json", "_class_name"
PIPELINE = {
    CLASS: "DDPMPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


class NotSettings(UserError):
    """A file is missing, or contains no settings; the message names it."""


@dataclass(frozen=True)
class Pipeline:
    """The content of a pipeline folder.

    shape: (channels, height, width) of an image. file: the file of the weights. tensors: the weights, by the names of
    UNet2DModel.
    """

    model: DdpmUNetOptions
    scheduler: ddpm_scheduler.SchedulerOptions
    shape: tuple[int, int, int]
    file: Path
    tensors: dict[str, Tensor]


def write_pipeline(folder: Path, weights: Weights) -> None:
    """Write `weights` to `folder` as a DDPMPipeline.

    Call `unet2d.check_expressible` first. Raises `NoRoom` if the disk is full.
    """
    config = weights.config
    assert isinstance(config.model, DdpmUNetOptions)
    for name in ("unet", "scheduler"):
        (folder / name).mkdir()
    _write_json(folder / "unet" / "config.json", unet2d.to_unet_config(config))
    write_tensors(folder / "unet" / TENSORS, unet2d.to_weights(config.model, weights.tensors), {})
    _write_json(folder / "scheduler" / "scheduler_config.json", ddpm_scheduler.to_scheduler_config(config))
    _write_json(folder / INDEX, PIPELINE)


def read_pipeline(key: str, folder: Path) -> Pipeline:
    """Read the DDPMPipeline in `folder`.

    The files are in unet/ and scheduler/, or all in `folder`, as in google/ddpm-cifar10-32. Weights are read only from
    .safetensors files, because a .bin file is a pickle, which can run code. `key` is the config key of `folder`, for
    error messages.

    Raises `UserError` if a file is missing or damaged, or if a setting is not supported.
    """
    if (folder / INDEX).is_file():  # missing in copies of single files
        with _settings_of(key, folder, folder / INDEX) as index:
            require(index.get(CLASS, PIPELINE[CLASS]) == PIPELINE[CLASS], index, CLASS, PIPELINE[CLASS])
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    with _settings_of(key, folder, unet / "config.json") as settings:
        model, (height, width), channels, out_channels = unet2d.from_unet_config(settings)
    with _settings_of(key, folder, scheduler / "scheduler_config.json") as settings:
        options = ddpm_scheduler.from_scheduler_config(settings)
        expected = channels * (2 if options.variance == "learned_range" else 1)
        if out_channels != expected:
            raise UserError(f"variance_type={options.variance}: needs {expected} out_channels, not {out_channels}")
    file = unet / TENSORS
    if not file.is_file():
        raise UserError(
            f"{key}={folder}: no {file.relative_to(folder)}; a .bin file is not read, because it can run code; load "
            "the pipeline with diffusers and save it with save_pretrained"
        )
    return Pipeline(model, options, (channels, height, width), file, read_tensors(key, file)[0])


def import_pipeline(config: ImportConfig, defaults: TrainConfig, folder: Path) -> None:
    """Write the network of the pipeline `config.path` to `folder`, which must be new or empty. Raise `UserError`."""
    pipeline = read_pipeline("path", Path(config.path).expanduser())
    weights = pipeline_to_weights("path", pipeline, defaults, config.dataset)
    new_folder(folder)
    write_weights(folder / WEIGHTS, weights)
    log.info("%s is in %s. Next: ddpm-sample %s", WEIGHTS, folder, override("ckpt", folder))


def pipeline_to_weights(key: str, pipeline: Pipeline, defaults: TrainConfig, dataset: Dataset) -> Weights:
    """Convert a pipeline to weights at step 0.

    key: the config key of the folder, for error messages. defaults: values of the settings that a pipeline does not
    contain, such as those of training. dataset: the data that the network was trained on. The weights are returned as
    EMA weights, because sampling uses these.

    Raises `UserError` if the weights do not match the settings of the pipeline, or the images do not match `dataset`.
    """
    if dataset.shape != pipeline.shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (dataset.shape, pipeline.shape))
        raise UserError(
            f"dataset={dataset.name}: has examples of {ours}, but the network expects images of {theirs}; set the "
            "dataset that it was trained on, with dataset.channels and dataset.image_size"
        )
    scheduler = pipeline.scheduler
    learned = scheduler.variance == "learned_range"
    config = replace(
        defaults,
        dataset=dataset,
        model=pipeline.model,
        schedule=scheduler.schedule,
        sampler=scheduler.sampler,
        prediction=scheduler.prediction,
        variance=scheduler.variance,
        loss=Hybrid(vlb_weight=0.001) if learned else L2(),
    )
    like = weights_like(config, [])
    try:
        tensors = unet2d.from_weights(pipeline.model, pipeline.tensors, like)
    except (UserError, RuntimeError) as error:  # RuntimeError: torch.cat fails if shapes differ
        raise UserError(
            f"{key}={pipeline.file}: {' '.join(str(error).split())[:LONGEST]}; name another folder"
        ) from error
    check_matches(key, pipeline.file, {"ema": tensors}, {"ema": like}, pipeline.file.stat().st_size)
    return Weights(config, [], 0, "ema", tensors)


def _write_json(file: Path, settings: dict[str, Any]) -> None:
    """Write `settings` with the version of diffusers, formatted as diffusers does."""
    versioned = {"_diffusers_version": VERSION, **settings}
    write(file, f"{json.dumps(versioned, indent=2, sort_keys=True)}\n".encode())


@contextmanager
def _settings_of(key: str, folder: Path, file: Path) -> Iterator[dict[str, Any]]:
    """Yield the settings in a file of the pipeline in `folder`, and raise `UserError` that names it for wrong ones."""
    try:
        yield _read_json(key, file)
    except NotSettings:
        raise
    except UserError as error:
        raise UserError(f"{key}={folder}: {file.relative_to(folder)}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise NotSettings(
            f"{key}={folder}: {file.relative_to(folder)}: not settings of the diffusers library"
        ) from error


def _read_json(key: str, file: Path) -> dict[str, Any]:
    """Return the settings in `file`. Raise `NotSettings` if it is missing or does not contain a JSON object."""
    if not file.is_file():  # opening a pipe would block
        raise NotSettings(
            f"{key}={file.parent}: no {file.name}; name the folder of a DDPMPipeline, or "
            "add format=shards for a folder of images"
        )
    try:
        settings = json.loads(file.read_text()) if file.stat().st_size <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise NotSettings(f"{key}={file}: not settings of the diffusers library; name another folder")
    return settings
