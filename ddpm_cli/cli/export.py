"""ddpm-export: a checkpoint as other tools read it."""

import logging
from pathlib import Path

from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.cli.app import launch
from ddpm_cli.config import ExportConfig

log = logging.getLogger(__name__)

USAGE = """
ddpm-export writes the network of a checkpoint as other tools read it, with a model card.

  ddpm-export ckpt=outputs/train/fashion_mnist/…             model.safetensors, which ddpm-sample ckpt=… takes too
  ddpm-export ckpt=… format=diffusers                        a DDPMPipeline, of model=ddpm_cifar10 or improved_cifar10
  ddpm-export ckpt=….pt format=onnx weights=model            model.onnx, forward(x, t[, y])
"""


def main() -> None:
    """The console script."""
    launch("export", USAGE, ExportConfig, check_export, run)


def check_export(config: ExportConfig) -> None:
    """Raise `UserError` where there is no checkpoint."""
    from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint

    find_checkpoint("ckpt", config.ckpt)


def run(config: ExportConfig, folder: Path) -> None:
    """Write the network, README.md and samples.png into `folder`, which must be new or empty."""
    from ddpm_cli.checkpoints.loading import load_weights
    from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint
    from ddpm_cli.export.export import check_packages, export
    from ddpm_cli.export.unet2d import check_expressible

    check_packages(config.format)
    path = find_checkpoint("ckpt", config.ckpt)
    weights = load_weights("ckpt", path, config.weights)
    if config.format == "diffusers":
        check_expressible(weights.config)
    new_folder(folder)
    export(weights, path, config.format, folder)
    log.info("step %d of %s as %s, and README.md, in %s", weights.step, config.ckpt, config.format, folder)
