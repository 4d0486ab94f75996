"""ddpm-forward: what the schedules do to an image, before anything is learned."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.cli.command import launch, new_folder
from ddpm_cli.config import ForwardConfig
from ddpm_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

USAGE = """
ddpm-forward shows what each schedule does to an image: a row of noised images, and its curves.

  ddpm-forward image=cat.jpg t=[0,50,100,150,199]
  ddpm-forward dataset=fashion_mnist index=3 timesteps=1000 t=[0,250,500,750,999]
  ddpm-forward image=cat.jpg show=[linear,cosine] schedules.linear.beta_end=0.05
"""


def main() -> None:
    """The console script."""
    launch("forward", USAGE, ForwardConfig, check, run)


def check(config: ForwardConfig) -> None:
    """Raise `UserError` for schedules that cannot be drawn."""
    from ddpm_cli.diffusion.schedules import betas_of

    for name in config.show:
        betas_of(config.schedules[name])


def run(config: ForwardConfig, folder: Path) -> None:
    """Write forward.png and schedules.png into `folder`, which must be new or empty."""
    import torch

    from ddpm_cli import rng
    from ddpm_cli.diffusion.process import Process
    from ddpm_cli.diffusion.schedules import betas_of
    from ddpm_cli.imaging import save_labelled_rows, save_schedule_plot, to_uint8

    processes = {name: Process(betas_of(config.schedules[name])) for name in config.show}
    x0 = (_pixels(config).float() / 127.5 - 1).expand(len(config.t), -1, -1, -1)
    t = torch.tensor(config.t)
    eps = torch.randn(x0[0].shape, generator=rng.generator(config.seed, "forward")).expand_as(x0)
    rows = {name: to_uint8(process.q_sample(x0, t, eps)) for name, process in processes.items()}
    new_folder(folder)
    save_labelled_rows(rows, [f"t={t}" for t in config.t], folder / "forward.png")
    curves = {name: process.alphas_cumprod for name, process in processes.items()}
    save_schedule_plot(curves, folder / "schedules.png")
    log.info("forward.png and schedules.png in %s", folder)


def _pixels(config: ForwardConfig) -> "Tensor":
    """The image to noise: (C, H, W) uint8."""
    if config.dataset is not None:
        from ddpm_cli.data.sources import load_images

        images = load_images(config.dataset, train=True)
        if config.index >= len(images):
            raise UserError(
                f"index={config.index}: must be in 0..{len(images) - 1}, the images of the dataset"
            )
        return images.pixels[config.index]

    import torch

    from ddpm_cli.data.image_folder import decode

    try:
        return torch.tensor(
            decode(Path(str(config.image)).expanduser(), config.image_size, config.image_size, 3)
        )
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = " ".join(str(error).split())
        raise UserError(f"image={config.image}: cannot be read as an image ({reason})") from error
