"""ddpm-forward: what the schedules do to an image, before anything is learned."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.cli.app import launch
from ddpm_cli.config import ForwardConfig
from ddpm_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.diffusion.process import Process

log = logging.getLogger(__name__)

USAGE = """
ddpm-forward shows what each schedule does to an image, or to points: a row of noised ones, and its curves.

  ddpm-forward image=cat.jpg t=[0,50,100,150,199]
  ddpm-forward dataset=fashion_mnist index=3 timesteps=1000 t=[0,250,500,750,999]
  ddpm-forward dataset=swiss_roll chain=true timesteps=100 t=[0,25,50,75,99]
  ddpm-forward image=cat.jpg show=[linear,cosine] schedules.linear.beta_end=0.05
"""

POINTS = 10_000
"""Of a cloud, at most."""


def main() -> None:
    """The console script."""
    launch("forward", USAGE, ForwardConfig, check, run)


def check(config: ForwardConfig) -> None:
    """Raise `UserError` for schedules that cannot be drawn."""
    from ddpm_cli.diffusion.schedules import betas_of

    for name in config.show:
        schedule = config.schedules[name]
        try:
            betas_of(schedule)
        except UserError as error:  # which does not know by what name the schedule goes here
            message = str(error).replace(f"schedule={schedule.name}", f"schedules.{name}")
            raise UserError(message.replace("schedule.", f"schedules.{name}.")) from error


def run(config: ForwardConfig, folder: Path) -> None:
    """Write forward.png and schedules.png into `folder`, which must be new or empty."""
    import torch

    from ddpm_cli import rng
    from ddpm_cli.diffusion.process import Process
    from ddpm_cli.diffusion.schedules import betas_of
    from ddpm_cli.images.plots import save_labelled_rows, save_schedule_plot

    processes = {name: Process(betas_of(config.schedules[name])) for name in config.show}
    x0 = _example(config)
    eps = torch.randn(x0.shape, generator=rng.generator(config.seed, "forward"))
    rows: dict[str, list[Tensor]] = {}
    for name, process in processes.items():
        rows[name] = [process.q_sample(x0[None], torch.tensor([t]), eps[None])[0] for t in config.t]
        if config.chain:
            rows[f"{name}, chain"] = _chain(process, x0, config.t, config.seed)
    new_folder(folder)
    save_labelled_rows(rows, [f"t={t}" for t in config.t], folder / "forward.png")
    curves = {name: process.alphas_cumprod for name, process in processes.items()}
    save_schedule_plot(curves, folder / "schedules.png")
    log.info("forward.png and schedules.png in %s", folder)


def _chain(process: "Process", x0: "Tensor", moments: list[int], seed: int) -> list["Tensor"]:
    """x at `moments`, noised step by step."""
    import torch

    from ddpm_cli import rng

    generator = rng.generator(seed, "chain")
    walk = enumerate(process.chain(x0, lambda: torch.randn(x0.shape, generator=generator)))
    at = {t: x for t, x in walk if t in moments}
    return [at[t] for t in moments]


def _example(config: ForwardConfig) -> "Tensor":
    """What to noise: an image (C, H, W) in [-1, 1], or the first points of a data set (N, 2)."""
    from ddpm_cli.data.table import to_float

    if config.dataset is None:
        from ddpm_cli.data.user_images import read_file

        return to_float(read_file("image", str(config.image), config.image_size, config.image_size, 3))

    from ddpm_cli.data.sources import load_examples

    values = load_examples(config.dataset, train=True).values
    if values.ndim == 2:
        return values[:POINTS]
    if config.index >= len(values):
        raise UserError(f"index={config.index}: must be in 0..{len(values) - 1}, the images of the dataset")
    return to_float(values[config.index])
