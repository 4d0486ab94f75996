"""Export a checkpoint to safetensors, diffusers or ONNX, or as one file. Implements ddpm-export."""

import logging
from importlib.util import find_spec
from pathlib import Path

from ddpm_cli.checkpoints.format import TYPES, load_checkpoint
from ddpm_cli.checkpoints.loading import load_weights
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint, save_checkpoint
from ddpm_cli.checkpoints.run_folder import WEIGHTS, new_folder
from ddpm_cli.checkpoints.safetensors_file import Weights, write_weights
from ddpm_cli.checkpoints.stored_config import plugins_of, to_stored
from ddpm_cli.config import ExportConfig
from ddpm_cli.errors import UserError
from ddpm_cli.export.model_card import model_card
from ddpm_cli.export.onnx_file import write_onnx
from ddpm_cli.export.pipeline_folder import write_pipeline
from ddpm_cli.export.run_record import record_of
from ddpm_cli.export.unet2d import check_expressible
from ddpm_cli.files import write
from ddpm_cli.tracking.terminal import status

log = logging.getLogger(__name__)

PACKAGES = {
    "safetensors": ["safetensors"],
    "diffusers": ["safetensors"],
    "onnx": ["onnx", "onnxscript"],
    "checkpoint": [],
}
"""Packages required to write each format. Writing the format of diffusers does not require diffusers."""


def check_packages(file_format: str) -> None:
    """Raise `UserError` if a package required for `file_format` is not installed."""
    for package in PACKAGES[file_format]:
        if find_spec(package) is None:
            raise UserError(f"format={file_format}: needs {package}; pip install 'ddpm-cli[export]'")


def export(weights: Weights, checkpoint: Path, file_format: str, folder: Path) -> None:
    """Write `weights` and a model card to `folder`.

    file_format: safetensors, diffusers or onnx. checkpoint: the file that contains the weights; its run folder provides
    the results and the sample grid of the model card.

    Call `check_packages` first and, for diffusers, also `unet2d.check_expressible`. Raises `NoRoom` if the disk is
    full.
    """
    match file_format:
        case "safetensors":
            write_weights(folder / WEIGHTS, weights)
        case "diffusers":
            write_pipeline(folder, weights)
        case "onnx":
            write_onnx(folder / "model.onnx", weights)
    record = record_of(checkpoint, weights.step, weights.kind)
    if record.grid is not None:
        write(folder / "samples.png", record.grid)
    write(folder / "README.md", model_card(weights, record, file_format).encode())


def export_checkpoint(config: ExportConfig, folder: Path) -> None:
    """Write the network of `config.ckpt`, README.md and samples.png to `folder`, which must be new or empty.

    Raise `UserError` for a missing package, or a network or checkpoint that the format cannot hold.
    """
    check_packages(config.format)
    path = find_checkpoint("ckpt", config.ckpt)
    if config.format == "checkpoint":
        export_as_one_file(config, path, folder)
        return
    with status("loading the checkpoint"):
        weights = load_weights("ckpt", path, config.weights)
    if config.format == "diffusers":
        check_expressible(weights.config)
    new_folder(folder)
    with status(f"writing {config.format}"):
        export(weights, path, config.format, folder)
    log.info("step %d of %s as %s, and README.md, are in %s", weights.step, config.ckpt, config.format, folder)


def export_as_one_file(config: ExportConfig, path: Path, folder: Path) -> None:
    """Write the checkpoint `path`, which may be sharded, to checkpoints/ in `folder` as a single file."""
    if path.suffix == ".safetensors":
        raise UserError(f"ckpt={config.ckpt}: has only weights, and a checkpoint also needs the optimizer; name a run")
    with status("loading the checkpoint"):
        state = load_checkpoint("ckpt", path)
    stored = {"config": to_stored(state["config"]), "plugins": plugins_of(state["config"]), "shards": {}}
    new_folder(folder)
    with status("writing the checkpoint"):
        written = save_checkpoint(folder, {key: state[key] for key in TYPES} | stored)
    log.info("step %d of %s is in %s", state["step"], config.ckpt, written)
