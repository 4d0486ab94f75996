"""Write a checkpoint in a format of other tools: the folder of ddpm-export."""

from importlib.util import find_spec
from pathlib import Path

from ddpm_cli.checkpoints.run_checkpoints import WEIGHTS
from ddpm_cli.checkpoints.safetensors_file import Weights, write_weights
from ddpm_cli.errors import UserError
from ddpm_cli.export.model_card import model_card
from ddpm_cli.export.onnx_file import write_onnx
from ddpm_cli.export.pipeline_folder import write_pipeline
from ddpm_cli.export.run_record import record_of
from ddpm_cli.files import write

PACKAGES = {"safetensors": ["safetensors"], "diffusers": ["safetensors"], "onnx": ["onnx", "onnxscript"]}
"""Packages needed to write each format. diffusers itself is needed only to read its format."""


def check_packages(file_format: str) -> None:
    """Raise `UserError` if a package needed for `file_format` is missing."""
    for package in PACKAGES[file_format]:
        if find_spec(package) is None:
            raise UserError(f"format={file_format}: needs {package}; pip install 'ddpm-cli[export]'")


def export(weights: Weights, checkpoint: Path, file_format: str, folder: Path) -> None:
    """Write `weights` of `checkpoint` as safetensors, diffusers or onnx into `folder`, with a model card.

    Call `check_packages` first, and for diffusers also `unet2d.check_expressible`. Raises `NoRoom` if the disk is full.
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
