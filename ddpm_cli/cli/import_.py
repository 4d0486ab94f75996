"""ddpm-import: a network of another library as a checkpoint."""

import logging
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf

from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.cli.app import launch, register_schemas
from ddpm_cli.config import ImportConfig, TrainConfig
from ddpm_cli.errors import UserError

log = logging.getLogger(__name__)

USAGE = """
ddpm-import makes a DDPMPipeline of the diffusers library a checkpoint that ddpm-sample and ddpm-evaluate take.

  ddpm-import path=ddpm-cifar10-32                           in the layout of google/ddpm-cifar10-32, or a newer one
  ddpm-import path=… dataset=image_folder dataset.root=/pictures dataset.image_size=64
"""


def main() -> None:
    """The console script."""
    launch("import", USAGE, ImportConfig, check_import, run)


def check_import(config: ImportConfig) -> None:
    """Raise `UserError` where there is no such folder."""
    try:
        found = Path(config.path).expanduser().is_dir()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        found = False
    if not found:
        raise UserError(f"path={config.path}: no such folder; name that of a DDPMPipeline")


def run(config: ImportConfig, folder: Path) -> None:
    """Write model.safetensors into `folder`, which must be new or empty."""
    from ddpm_cli.checkpoints.run_checkpoints import WEIGHTS
    from ddpm_cli.checkpoints.safetensors_file import write_weights
    from ddpm_cli.export.pipeline_folder import read_pipeline, weights_of

    pipeline = read_pipeline("path", Path(config.path).expanduser())
    weights = weights_of("path", pipeline, _defaults(), config.dataset)
    new_folder(folder)
    write_weights(folder / WEIGHTS, weights)
    log.info("%s in %s; ddpm-sample ckpt=%s makes images", WEIGHTS, folder, folder)


def _defaults() -> TrainConfig:
    """Return the default config of ddpm-train, since nothing is known of how the network was trained."""
    register_schemas("train", TrainConfig)
    config = OmegaConf.to_object(compose("train"))
    assert isinstance(config, TrainConfig)
    return config
