"""Draw the forward process: examples noised by each schedule, and the curves of the schedules."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.checkpoints.run_folder import new_folder
from ddpm_cli.config import ForwardConfig, ImageDataset
from ddpm_cli.data.sources import open_examples
from ddpm_cli.data.table import Examples, StreamedExamples, to_float
from ddpm_cli.data.user_images import read_file
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.errors import UserError
from ddpm_cli.images.plots import save_labelled_rows, save_schedule_plot
from ddpm_cli.tracking.terminal import status

log = logging.getLogger(__name__)

MAX_POINTS = 10_000


def check_schedules(config: ForwardConfig) -> None:
    """Raise `UserError` for schedules that cannot be drawn."""
    for name in config.show:
        schedule = config.schedules[name]
        try:
            path_of(schedule)
        except UserError as error:  # it names the group, but the keys of this command have the name of the schedule
            message = str(error).replace(f"schedule={schedule.name}", f"schedules.{name}")
            raise UserError(message.replace("schedule.", f"schedules.{name}.")) from error


def draw_forward(config: ForwardConfig, folder: Path) -> None:
    """Write forward.png and schedules.png to `folder`, which must be new or empty."""
    processes = {name: Process(path_of(config.schedules[name])) for name in config.show}
    with status("reading the example"):
        x0 = _example(config)
    eps = torch.randn(x0.shape, generator=rng.generator(config.seed, "forward"))
    rows: dict[str, list[Tensor]] = {}
    for name, process in processes.items():
        rows[name] = [process.q_sample(x0[None], torch.tensor([t]), eps[None])[0] for t in config.t]
        if config.chain:
            rows[f"{name}, chain"] = _chain(process, x0, config.t, config.seed)
    new_folder(folder)
    with status("drawing"):
        save_labelled_rows(rows, [f"t={t}" for t in config.t], folder / "forward.png")
        curves = {name: (process.signals, process.sigmas) for name, process in processes.items()}
        save_schedule_plot(curves, folder / "schedules.png")
    log.info("forward.png and schedules.png are in %s", folder)


def _chain(process: Process, x0: Tensor, timesteps: list[int], seed: int) -> list[Tensor]:
    """Return x at `timesteps`, noised one step at a time."""
    generator = rng.generator(seed, "chain")
    steps = enumerate(process.chain(x0, lambda: torch.randn(x0.shape, generator=generator)))
    at = {t: x for t, x in steps if t in timesteps}
    return [at[t] for t in timesteps]


def _example(config: ForwardConfig) -> Tensor:
    """Return what to noise: an image (C, H, W) in [-1, 1], or the first points (N, 2) of a dataset."""
    if config.dataset is None:
        return to_float(read_file("image", str(config.image), config.image_size, config.image_size, 3))
    examples = open_examples(config.dataset, train=True)
    if not isinstance(config.dataset, ImageDataset):
        assert isinstance(examples, Examples)
        return examples.values[:MAX_POINTS]
    if config.index >= len(examples):
        raise UserError(f"index={config.index}: must be in 0..{len(examples) - 1}, the images of the dataset")
    if isinstance(examples, StreamedExamples):
        return to_float(torch.from_numpy(examples.read(config.index)))
    return to_float(examples.values[config.index])
