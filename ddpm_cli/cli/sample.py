"""ddpm-sample: images from a checkpoint, which is all it needs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_cli.cli.command import launch, new_folder
from ddpm_cli.config import SampleConfig, TrainConfig
from ddpm_cli.options import Sampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddpm_cli.diffusion.denoiser import Denoiser

log = logging.getLogger(__name__)

USAGE = """
ddpm-sample makes images from a checkpoint of ddpm-train.

  ddpm-sample ckpt=outputs/train/fashion_mnist/… n=64
  ddpm-sample ckpt=….pt n=16 sampler=ddim sampler.steps=50 gif=true seed=7 device=cpu
"""

IN_GRID = 256
"""Images that grid.png and film.gif show at most."""
FRAMES = 32
"""Frames of a film at most."""


def main() -> None:
    """The console script."""
    launch("sample", USAGE, SampleConfig, check, run)


def check(config: SampleConfig) -> None:
    """Raise `UserError` for what can be known before the checkpoint is read."""
    from ddpm_cli.training.checkpoint import find_checkpoint
    from ddpm_cli.training.devices import resolve_device

    find_checkpoint("ckpt", config.ckpt)
    resolve_device(config.device)


def run(config: SampleConfig, folder: Path) -> None:
    """Write grid.png, images/ and what else `config` asks for into `folder`, which must be new or empty."""
    import torch

    from ddpm_cli.imaging import grid, save_gif, save_png, to_image

    run_config, denoiser, device = _trained(config)
    sampler = config.sampler or run_config.sampler
    sampler.check_against(run_config.schedule)
    new_folder(folder)
    (folder / "images").mkdir()
    kept: list[Tensor] = []
    films: list[list[Tensor]] = []
    for images, frames in _batches(config, sampler, denoiser, run_config.dataset.shape, device):
        for i, pixels in zip(images, frames[-1], strict=True):
            save_png(to_image(pixels), folder / "images" / f"{i:05d}.png")
        if config.npz or images.start < IN_GRID:
            kept.append(frames[-1])
        if images.start < IN_GRID:
            films.append(frames)
    pixels = torch.cat(kept)
    save_png(grid(pixels[:IN_GRID]), folder / "grid.png")
    if config.gif:
        moments = zip(*films, strict=True)
        save_gif([grid(torch.cat(parts)[:IN_GRID]) for parts in moments], folder / "film.gif")
    if config.npz:
        _save_npz(pixels, folder / "samples.npz")
    log.info("%d images in %s", config.n, folder)


def _trained(config: SampleConfig) -> tuple[TrainConfig, "Denoiser", "torch.device"]:
    """The run's config and its denoiser with the weights asked for, on the device asked for."""
    from ddpm_cli.models import build_network
    from ddpm_cli.training.checkpoint import find_checkpoint, load_checkpoint, load_weights
    from ddpm_cli.training.devices import resolve_device, resolve_precision
    from ddpm_cli.training.generate import build_denoiser

    path = find_checkpoint("ckpt", config.ckpt)
    device = resolve_device(config.device)
    state = load_checkpoint("ckpt", path)
    run_config: TrainConfig = state["config"]
    network = build_network(run_config.model, run_config.dataset.channels)
    load_weights("ckpt", path, network, state[config.weights])
    network = network.to(device).eval().requires_grad_(False)
    dtype = resolve_precision(config.precision, device)
    return run_config, build_denoiser(run_config, network, device, dtype), device


def _batches(
    config: SampleConfig, sampler: Sampler, denoiser: "Denoiser", shape: tuple[int, int, int], device: Any
) -> Iterator[tuple[range, list["Tensor"]]]:
    """Which images, and the frames of their denoising (without a film the last): (B, C, H, W) uint8."""
    from tqdm import tqdm

    from ddpm_cli.diffusion.samplers import timestep_pairs
    from ddpm_cli.imaging import to_uint8
    from ddpm_cli.training.generate import generate

    calls = len(timestep_pairs(denoiser.process.timesteps, sampler.steps))
    shown = {round(calls * (i + 1) / FRAMES) for i in range(FRAMES)} if config.gif else {calls}
    total = calls * -(-config.n // config.batch_size)
    with tqdm(total=total, unit="step", disable=None) as bar:
        for images, steps in generate(
            denoiser, sampler, config.seed, config.n, config.batch_size, shape, device
        ):
            frames = []
            for i, step in enumerate(steps, start=1):
                bar.update()
                if i in shown:
                    frames.append(to_uint8(step.x))
            yield images, frames


def _save_npz(pixels: "Tensor", path: Path) -> None:
    """images: (N, H, W, C) uint8. labels: (N,) int64, -1 where the network was not told a class."""
    import numpy as np

    from ddpm_cli.files import atomic

    with atomic(path) as partial, partial.open("wb") as stream:
        labels = np.full(len(pixels), -1, dtype=np.int64)
        np.savez_compressed(stream, images=pixels.permute(0, 2, 3, 1).numpy(), labels=labels)
