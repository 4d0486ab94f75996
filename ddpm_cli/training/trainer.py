"""A run's state and its steps. Everything random in a step is a function of (seed, step), so a run resumes exactly."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_cli import rng, world
from ddpm_cli.config import TrainConfig
from ddpm_cli.data.table import Table
from ddpm_cli.diffusion.guidance import hide_labels
from ddpm_cli.diffusion.objective import Objective
from ddpm_cli.diffusion.timestep_samplers import build_timestep_sampler
from ddpm_cli.options import ClassLabels, ImageDataset
from ddpm_cli.training.build import build_denoiser, network_of
from ddpm_cli.training.devices import resolve_precision
from ddpm_cli.training.ema import Ema, ema_decay
from ddpm_cli.training.generate import Generator
from ddpm_cli.training.optimizer import build_optimizer, learning_rate
from ddpm_cli.training.parallel import everywhere, parted, shared, synchronised, whole
from ddpm_cli.training.stored_config import to_stored

SCALER_MOVES = ("scale", "_growth_tracker")
"""What changes in the state of a gradient scaler; the rest is as torch sets it."""


class Part(NamedTuple):
    """What a part of a step is trained on: each (B, ...); y may be None."""

    x0: Tensor
    t: Tensor
    eps: Tensor
    weights: Tensor
    y: Tensor | None


class Trainer:
    """A run: its state, a step, and what it draws. In several processes, each has a part of every batch."""

    def __init__(self, config: TrainConfig, table: Table, device: torch.device) -> None:
        self.config = config
        self.table = table
        self.classes = table.classes if isinstance(config.conditioning, ClassLabels) else []
        self.device = device
        self.step = 0  # steps done
        in_parts = world.size() > 1 and config.distributed.strategy == "fsdp"  # which takes no other layout
        layout = torch.contiguous_format if in_parts or device.type == "mps" else torch.channels_last
        rng.seed_everything(config.train.seed, "network")
        network = network_of(config, self.classes)
        self.network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = Ema(self.network)
        self.shared = shared(self.network, self.ema.network, config.distributed.strategy, device)
        self.dtype = resolve_precision(config.train.precision, device)
        self.optimizer = build_optimizer(config.train, self.network, self.dtype)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.denoiser = build_denoiser(config, self.shared, device, self.dtype)
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
            self.shared.compile()  # in place, so that names in checkpoints stay clean

    @property
    def steps(self) -> int:
        """The length of the run."""
        return self.config.train.total_steps(len(self.table))

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One update of the parameters and of their average: (loss, gradient norm), still on the device.

        Where one of the two is not finite, nothing is updated, and the loss is NaN.
        """
        train = self.config.train
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, train, self.steps)
        rng.seed_everything(train.seed, "dropout", self.step, world.rank())
        show_estimate = self._shows_estimate()
        before = [tensor.clone() for tensor in self._moved_by_losses()]
        seen: list[tuple[Tensor, Tensor]] = []
        loss = torch.zeros((), device=self.device)
        for i, part in enumerate(self._parts(), start=1):
            with synchronised(self.shared, now=i == train.accumulate):
                losses = self.objective(part.x0, part.t, part.eps, part.y, show_estimate)
                mean = (part.weights * losses).mean() / train.accumulate
                self.scaler.scale(mean).backward()
            loss += mean.detach()
            seen.append((part.t, losses.detach()))
        loss = world.mean(loss)
        self.timestep_sampler.update(*(torch.cat(column) for column in zip(*seen, strict=True)))
        grad_norm, finite = self._update(loss)
        for now, then in zip(self._moved_by_losses(), before, strict=True):
            now.copy_(torch.where(finite, now, then))
        self.ema.update(self.network, ema_decay(self.step + 1, train.ema_decay, train.ema_warmup, train.ema_start))
        self.step += 1
        return torch.where(finite, loss, math.nan), grad_norm

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Move the parameters by the gradients there are, if all is finite: the gradients' norm, and whether it is.

        Decided on the device: `found_inf` is how a gradient scaler tells a fused optimizer to skip a step.
        """
        train = self.config.train
        self.scaler.unscale_(self.optimizer)
        max_norm = math.inf if train.grad_clip is None else train.grad_clip
        grad_norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), max_norm))
        finite = loss.isfinite() & grad_norm.isfinite()
        skip = everywhere((~finite).float(), next(self.network.parameters()))
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm, finite

    def _moved_by_losses(self) -> list[Tensor]:
        """What a step changes beside the parameters, before it is known whether its loss is finite."""
        return [*self.network.buffers(), *self.timestep_sampler.state().values()]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the trainer, the same for any number of processes; all of them must ask."""
        moments = self.optimizer.state_dict()["state"]
        return {
            "step": self.step,
            "config": to_stored(self.config),
            "model": {name: whole(x) for name, x in self.network.state_dict().items()},
            "ema": {name: whole(x) for name, x in self.ema.network.state_dict().items()},
            "optimizer": {i: {name: whole(x) for name, x in own.items()} for i, own in moments.items()},
            "scaler": {key: value for key, value in self.scaler.state_dict().items() if key in SCALER_MOVES},
            "timestep_sampler": self.timestep_sampler.state(),
            "classes": self.classes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.step = state["step"]
        for network, weights in ((self.network, state["model"]), (self.ema.network, state["ema"])):
            now = network.state_dict()
            network.load_state_dict({name: parted(x, now[name]) for name, x in weights.items()})
        parameters = list(self.network.parameters())
        moments = {
            i: {name: parted(x, parameters[i]) for name, x in own.items()} for i, own in state["optimizer"].items()
        }
        groups = self.optimizer.state_dict()["param_groups"]  # from the config, which may have changed since
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.timestep_sampler.restore(state["timestep_sampler"])
        if self.scaler.is_enabled() and state["scaler"]:  # empty where the run was not in fp16 so far
            self.scaler.load_state_dict(self.scaler.state_dict() | state["scaler"])

    def _parts(self) -> list[Part]:
        """This process's share of the step's examples, timesteps and noise, in `accumulate` parts.

        Timesteps and noise are drawn for all, so that what an example meets does not depend on how many share the work.
        """
        train, own = self.config.train, world.share(self.config.train.batch_size)
        x0, y = self.table.batch(self.step, train.batch_size)
        generator = rng.generator(train.seed, "noise", self.step, device=self.device)
        t, weights = self.timestep_sampler.sample(train.batch_size, generator)
        eps = torch.randn((train.batch_size, *x0.shape[1:]), generator=generator, device=self.device)
        size = len(x0) // train.accumulate
        columns = [column.split(size) for column in (x0, t[own], eps[own], weights[own])]
        told = self._told(y)
        labels = [None] * train.accumulate if told is None else told.split(size)
        return [Part(*part) for part in zip(*columns, labels, strict=True)]

    def _told(self, y: Tensor | None) -> Tensor | None:
        """The classes that the network is told, a share of them hidden; None where it is not told any."""
        conditioning = self.config.conditioning
        if not isinstance(conditioning, ClassLabels) or y is None:
            return None
        train = self.config.train
        generator = rng.generator(train.seed, "labels", self.step, device=self.device)
        coins = torch.rand(train.batch_size, generator=generator, device=self.device)
        hidden = coins[world.share(train.batch_size)] < conditioning.dropout
        return hide_labels(y, hidden, null=len(self.classes))

    def _shows_estimate(self) -> bool:
        """Whether this step is self-conditioned: a coin tossed on the host, so that nothing waits for it."""
        coin = rng.seed_of(self.config.train.seed, "self_condition", self.step) % 2 == 0
        return self.config.model.self_condition and coin
