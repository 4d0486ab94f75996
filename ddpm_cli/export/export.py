"""A checkpoint as other tools read it: the folder that ddpm-export writes."""

from importlib.util import find_spec
from pathlib import Path

from ddpm_cli.checkpoints.run_checkpoints import WEIGHTS
from ddpm_cli.checkpoints.safetensors_file import Weights, write_weights
from ddpm_cli.errors import UserError
from ddpm_cli.export.model_card import card
from ddpm_cli.export.onnx_file import write_onnx
from ddpm_cli.export.pipeline_folder import write_pipeline
from ddpm_cli.export.run_record import record_of
from ddpm_cli.files import write

PACKAGES = {"safetensors": ["safetensors"], "diffusers": ["safetensors"], "onnx": ["onnx", "onnxscript"]}
"""What each format is written with; diffusers itself is needed to read its own alone."""


def check_packages(form: str) -> None:
    """Raise `UserError` where what `form` is written with is missing."""
    for package in PACKAGES[form]:
        if find_spec(package) is None:
            raise UserError(f"format={form}: needs {package}; pip install 'ddpm-cli[export]'")


def export(weights: Weights, checkpoint: Path, form: str, folder: Path) -> None:
    """Write `weights`, which lie in `checkpoint`, as safetensors, diffusers or onnx into `folder`, with a model card.

    `check_packages`, and for diffusers `unet2d.check_expressible`, must have let that pass. Raises `NoRoom`.
    """
    match form:
        case "safetensors":
            write_weights(folder / WEIGHTS, weights)
        case "diffusers":
            write_pipeline(folder, weights)
        case "onnx":
            write_onnx(folder / "model.onnx", weights)
    record = record_of(checkpoint, weights.step, weights.kind)
    if record.grid is not None:
        write(folder / "samples.png", record.grid)
    write(folder / "README.md", card(weights, record, form).encode())
