"""The training loop. Everything random in a step is a function of (seed, step), so a run resumes exactly."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_cli import rng
from ddpm_cli.config import TrainConfig
from ddpm_cli.data.table import Table
from ddpm_cli.diffusion.guidance import hide_labels
from ddpm_cli.diffusion.objective import Objective
from ddpm_cli.diffusion.timestep_samplers import build_timestep_sampler
from ddpm_cli.imaging import save_png
from ddpm_cli.options import ClassLabels, ImageDataset
from ddpm_cli.pictures import picture
from ddpm_cli.training.build import build_denoiser, network_of
from ddpm_cli.training.checkpoint import save_checkpoint
from ddpm_cli.training.devices import resolve_precision
from ddpm_cli.training.ema import Ema, ema_decay
from ddpm_cli.training.generate import Generator, in_turn
from ddpm_cli.training.metrics import Metrics
from ddpm_cli.training.optimizer import build_optimizer, learning_rate
from ddpm_cli.training.progress import Progress

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What a part of a step is trained on: each (B, ...); y may be None."""

    x0: Tensor
    t: Tensor
    eps: Tensor
    weights: Tensor
    y: Tensor | None


class Trainer:
    """A run: its state, a step, the loop over steps, and what a milestone writes."""

    def __init__(self, config: TrainConfig, table: Table, device: torch.device) -> None:
        self.config = config
        self.table = table
        self.classes = table.classes if isinstance(config.conditioning, ClassLabels) else []
        self.device = device
        self.step = 0  # steps done
        self.seconds = 0.0  # spent in them
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        rng.seed_everything(config.train.seed, "network")
        network = network_of(config, self.classes)
        self.network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = Ema(self.network)
        self.optimizer = build_optimizer(config.train, self.network)
        self.dtype = resolve_precision(config.train.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.denoiser = build_denoiser(config, self.network, device, self.dtype)
        self.objective = Objective(
            self.denoiser, config.loss, config.weighting, isinstance(config.dataset, ImageDataset)
        )
        self.timestep_sampler = build_timestep_sampler(config.timestep_sampler, config.schedule.timesteps, device)
        self.generator = Generator(
            build_denoiser(config, self.ema.network, device, self.dtype),
            config.sampler,
            config.dataset.shape,
            device,
            len(self.classes),
            config.guidance_scale,
        )
        if config.compile or (config.compile is None and device.type == "cuda"):
            self.network.compile()  # in place, so that names in checkpoints stay clean

    @property
    def steps(self) -> int:
        """The length of the run."""
        return self.config.train.total_steps(len(self.table))

    def train(self, folder: Path) -> float:
        """Train to the last step, writing into `folder`; returns the last loss logged."""
        train = self.config.train
        metrics = Metrics(folder, self.step)
        progress = Progress(self.step, self.steps, train.batch_size, self.seconds, self.device.type == "cpu")
        losses: list[Tensor] = []
        mean_loss = math.nan
        self.network.train()
        while self.step < self.steps:
            loss, grad_norm = self.train_step()
            self.step += 1
            losses.append(loss)
            progress.after_step(self.step, loss)
            milestone = train.is_milestone(self.step, len(self.table)) or self.step == self.steps
            if milestone or self.step % train.log_every == 0:  # only here the host waits for the device
                mean_loss = torch.stack(losses).mean().item()
                losses.clear()
                speed = progress.lap(self.step, mean_loss)
                self.seconds = progress.seconds
                metrics.append(self._row(mean_loss, grad_norm.item(), speed))
            if milestone:
                self.milestone(folder, metrics)
                progress.restart(self.step)
        progress.bar.close()
        return mean_loss

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One update of the parameters and of their average: (loss, gradient norm), still on the device."""
        train = self.config.train
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, train, self.steps)
        rng.seed_everything(train.seed, "dropout", self.step)
        show_estimate = self._shows_estimate()
        seen: list[tuple[Tensor, Tensor]] = []
        loss = torch.zeros((), device=self.device)
        for part in self._parts():
            losses = self.objective(part.x0, part.t, part.eps, part.y, show_estimate)
            mean = (part.weights * losses).mean() / train.accumulate
            self.scaler.scale(mean).backward()
            loss += mean.detach()
            seen.append((part.t, losses.detach()))
        self.timestep_sampler.update(*(torch.cat(column) for column in zip(*seen, strict=True)))
        self.scaler.unscale_(self.optimizer)
        max_norm = math.inf if train.grad_clip is None else train.grad_clip
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, ema_decay(self.step + 1, train.ema_decay, train.ema_warmup, train.ema_start))
        return loss, grad_norm

    def milestone(self, folder: Path, metrics: Metrics) -> None:
        """Checkpoint, loss plot, and a grid from the averaged weights, of the same seeds each time."""
        save_checkpoint(folder, self.state())
        metrics.draw()
        path = folder / "samples" / f"step_{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        labels = in_turn(self.config.train.samples, range(max(1, len(self.classes))))
        names = [self.classes[label] for label in labels] if self.classes else None
        save_png(picture(self.samples(labels), names), path)
        log.info("milestone at step %d: %s", self.step, path)

    def samples(self, labels: Sequence[int]) -> Tensor:
        """Examples from the averaged weights, one for each of `labels`: (n, C, ...) float32."""
        train = self.config.train
        batches = self.generator.batches(train.seed, labels, train.batch_size)
        return torch.cat([[*steps][-1].x for _, steps in batches])

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds beside its format."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "config": asdict(self.config),
            "model": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "timestep_sampler": self.timestep_sampler.state(),
            "classes": self.classes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["model"])
        self.ema.network.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.timestep_sampler.restore(state["timestep_sampler"])
        train = self.config.train  # which may have changed since
        self.optimizer.param_groups[0].update(betas=tuple(train.betas), weight_decay=train.weight_decay)
        if self.scaler.is_enabled() and state["scaler"]:  # empty where the run was not in fp16 so far
            self.scaler.load_state_dict(state["scaler"])

    def _parts(self) -> list[Part]:
        """The step's examples, timesteps and noise, in `accumulate` parts."""
        train = self.config.train
        x0, y = self.table.batch(self.step, train.batch_size)
        generator = rng.generator(train.seed, "noise", self.step, device=self.device)
        t, weights = self.timestep_sampler.sample(len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator, device=self.device)
        size = len(x0) // train.accumulate
        columns = [column.split(size) for column in (x0, t, eps, weights)]
        told = self._told(y)
        labels = [None] * train.accumulate if told is None else told.split(size)
        return [Part(*part) for part in zip(*columns, labels, strict=True)]

    def _told(self, y: Tensor | None) -> Tensor | None:
        """The classes that the network is told, a share of them hidden; None where it is not told any."""
        conditioning = self.config.conditioning
        if not isinstance(conditioning, ClassLabels) or y is None:
            return None
        generator = rng.generator(self.config.train.seed, "labels", self.step, device=self.device)
        hidden = torch.rand(len(y), generator=generator, device=self.device) < conditioning.dropout
        return hide_labels(y, hidden, null=len(self.classes))

    def _shows_estimate(self) -> bool:
        """Whether this step is self-conditioned: a coin tossed on the host, so that nothing waits for it."""
        coin = rng.seed_of(self.config.train.seed, "self_condition", self.step) % 2 == 0
        return self.config.model.self_condition and coin

    def _row(self, loss: float, grad_norm: float, images_per_second: float) -> dict[str, float]:
        images = self.step * self.config.train.batch_size
        return {
            "step": self.step,
            "images": images,
            "epoch": images / len(self.table),
            "loss": loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm,
            "images_per_second": images_per_second,
            "seconds": self.seconds,
        }
