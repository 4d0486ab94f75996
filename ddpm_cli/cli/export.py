"""ddpm-export: write a checkpoint in the format of another tool."""

from pathlib import Path

from ddpm_cli.cli.app import Command, run_command
from ddpm_cli.config import ExportConfig

USAGE = """
ddpm-export writes the network of a checkpoint in the format of another tool, with a model card.

  ddpm-export ckpt=outputs/train/fashion_mnist/…             model.safetensors, which ddpm-sample ckpt=… also accepts
  ddpm-export ckpt=… format=diffusers                        a DDPMPipeline, of model=ddpm_cifar10 or improved_cifar10
  ddpm-export ckpt=….pt format=onnx weights=model            model.onnx, forward(x, t[, y])
"""


def main() -> None:
    """Entry point of the console script."""
    run_command(COMMAND)


def check(config: ExportConfig) -> None:
    """Raise `UserError` if there is no checkpoint."""
    from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint

    find_checkpoint("ckpt", config.ckpt)


def run(config: ExportConfig, folder: Path) -> None:
    """Write the network, README.md and samples.png to `folder`, which must be new or empty."""
    from ddpm_cli.export.export import export_checkpoint

    export_checkpoint(config, folder)


COMMAND = Command("export", USAGE, ExportConfig, check, run)
