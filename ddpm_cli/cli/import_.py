"""ddpm-import: convert a network of another library to a checkpoint."""

from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf

from ddpm_cli.cli.app import Command, register_schemas, run_command
from ddpm_cli.config import ImportConfig, TrainConfig
from ddpm_cli.errors import UserError

USAGE = """
ddpm-import converts a DDPMPipeline of the diffusers library to weights for ddpm-sample and ddpm-evaluate.

  ddpm-import path=ddpm-cifar10-32                           in the layout of google/ddpm-cifar10-32, or a newer one
  ddpm-import path=… dataset=image_folder dataset.root=/pictures dataset.image_size=64
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
        raise UserError(f"path={config.path}: no such folder; name the folder of a DDPMPipeline")


def run(config: ImportConfig, folder: Path) -> None:
    """Write model.safetensors to `folder`, which must be new or empty."""
    from ddpm_cli.export.pipeline_folder import import_pipeline

    # The pipeline does not say how the network was trained, so the rest of the config is that of ddpm-train.
    register_schemas("train", TrainConfig)
    import_pipeline(config, OmegaConf.to_object(compose("train")), folder)  # type: ignore[arg-type]


COMMAND = Command("import", USAGE, ImportConfig, check, run)
