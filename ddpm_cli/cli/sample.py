"""ddpm-sample: draw samples with a checkpoint."""

from pathlib import Path

from ddpm_cli.cli.app import Command, run_command
from ddpm_cli.config import CheckpointConfig, SampleConfig

USAGE = """
ddpm-sample draws samples with a checkpoint of ddpm-train.

  ddpm-sample ckpt=outputs/train/fashion_mnist/… n=64
  ddpm-sample ckpt=….pt n=16 sampler=ddim sampler.steps=50 gif=true seed=7 device=cpu
  ddpm-sample ckpt=… class=sneaker guidance_scale=3       for a class-conditional network
  ddpm-sample ckpt=… task=interpolate a=this.png b=that.png
  ddpm-sample ckpt=… task=inpaint image=torn.png mask=hole.png
"""


def main() -> None:
    """Entry point of the console script."""
    run_command(COMMAND)


def check(config: CheckpointConfig) -> None:
    """Raise `UserError` if there is no checkpoint, or fewer devices than asked for."""
    from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint
    from ddpm_cli.distributed.launch import worker_group

    find_checkpoint("ckpt", config.ckpt)
    worker_group(config.devices, config.device, config.threads)


def run(config: SampleConfig, folder: Path) -> None:
    """Write grid.png, images/ and what else the config asks for to `folder`, which must be new or empty."""
    from ddpm_cli.distributed.launch import run_distributed, worker_group
    from ddpm_cli.sampling.draw import draw

    run_distributed(draw, (config, folder), worker_group(config.devices, config.device, config.threads))


COMMAND = Command("sample", USAGE, SampleConfig, check, run)
