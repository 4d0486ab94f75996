"""ddpm-import: convert a network of another library to a checkpoint, or a folder of images to shards."""

import logging
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf

from ddpm_cli.cli.app import Command, register_schemas, run_command
from ddpm_cli.config import ImportConfig, TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.shell import override

log = logging.getLogger(__name__)

USAGE = """
ddpm-import converts a DDPMPipeline of the diffusers library to weights for ddpm-sample and ddpm-evaluate, or a folder
of images to shards, which dataset=shards reads while training.

  ddpm-import path=ddpm-cifar10-32                           in the layout of google/ddpm-cifar10-32, or a newer one
  ddpm-import path=… dataset=image_folder dataset.root=/pictures dataset.image_size=64
  ddpm-import format=shards path=/pictures out=/shards
"""


def main() -> None:
    """Entry point of the console script."""
    run_command(COMMAND)


def check(config: ImportConfig) -> None:
    """Raise `UserError` if there is no such folder."""
    try:
        found = Path(config.path).expanduser().is_dir()
    except (OSError, ValueError):  # a name that is too long or contains a null byte
        found = False
    if not found:
        wanted = "a folder of images" if config.format == "shards" else "the folder of a DDPMPipeline"
        raise UserError(f"path={config.path}: no such folder; name {wanted}")


def run(config: ImportConfig, folder: Path) -> None:
    """Write model.safetensors or shards to `folder`, which must be new or empty."""
    if config.format == "shards":
        _import_shards(config, folder)
    else:
        _import_pipeline(config, folder)


def _import_pipeline(config: ImportConfig, folder: Path) -> None:
    from ddpm_cli.export.pipeline_folder import import_pipeline

    # The pipeline does not say how the network was trained, so the rest of the config is that of ddpm-train.
    register_schemas("train", TrainConfig)
    import_pipeline(config, OmegaConf.to_object(compose("train")), folder)  # type: ignore[arg-type]


def _import_shards(config: ImportConfig, folder: Path) -> None:
    from ddpm_cli.checkpoints.run_folder import new_folder
    from ddpm_cli.data.shard_writer import list_files, write_shards

    try:
        images = config.image_folder()
        files = list_files(images)  # before the folder is created
        new_folder(folder)
        write_shards(images, files, folder)
    except UserError as error:  # it names the keys of dataset=image_folder
        raise UserError(str(error).replace("dataset.root=", "path=").replace("dataset.", "")) from error
    log.info("Next: ddpm-train dataset=shards %s", override("dataset.root", folder))


COMMAND = Command("import", USAGE, ImportConfig, check, run)
