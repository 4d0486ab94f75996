"""ddpm-forward: show what the schedules do to an image or to points."""

from pathlib import Path

from ddpm_cli.cli.app import Command, run_command
from ddpm_cli.config import ForwardConfig

USAGE = """
ddpm-forward draws an image or points noised by each schedule, and the curves of the schedules.

  ddpm-forward image=cat.jpg t=[0,50,100,150,199]
  ddpm-forward dataset=fashion_mnist index=3 timesteps=1000 t=[0,250,500,750,999]
  ddpm-forward dataset=swiss_roll chain=true timesteps=100 t=[0,25,50,75,99]
  ddpm-forward image=cat.jpg show=[linear,cosine] schedules.linear.beta_end=0.05
"""


def main() -> None:
    """Entry point of the console script."""
    run_command(COMMAND)


def check(config: ForwardConfig) -> None:
    """Raise `UserError` for schedules that cannot be drawn."""
    from ddpm_cli.sampling.forward import check_schedules

    check_schedules(config)


def run(config: ForwardConfig, folder: Path) -> None:
    """Write forward.png and schedules.png to `folder`, which must be new or empty."""
    from ddpm_cli.sampling.forward import draw_forward

    draw_forward(config, folder)


COMMAND = Command("forward", USAGE, ForwardConfig, check, run)
