"""The state of a run and its steps.

The randomness of a step depends only on (seed, step), so a resumed run has the same bits as one that never stopped.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_cli import rng
from ddpm_cli.checkpoints.stored_config import plugins_of, to_stored
from ddpm_cli.config import ClassLabels, TrainConfig
from ddpm_cli.data.table import Batches
from ddpm_cli.diffusion.sampling import GuidanceRule, hide_labels
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.cuda_graph import CudaGraphs
from ddpm_cli.distributed.devices import IMAGES_WORTH_COMPILING, configure_arithmetic, resolve_precision, should_compile
from ddpm_cli.distributed.sharding import (
    gradient_sync,
    local_part,
    replicate_like,
    shard_like,
    unshard,
    unshard_on_rank_zero,
    wrap_distributed,
)
from ddpm_cli.sampling.build import (
    build_denoiser,
    build_objective,
    build_timestep_sampler,
    for_inference,
    network_of,
)
from ddpm_cli.sampling.sample_generator import SampleGenerator
from ddpm_cli.tracking.timeline import new_timeline, resumed_timeline
from ddpm_cli.training.ema import Ema, PowerAverages, ema_decay
from ddpm_cli.training.optimizer import build_optimizer, in_groups, learning_rate, set_learning_rate

SCALER_MOVES = ("scale", "_growth_tracker")
"""Keys of the state of a gradient scaler that change while training."""


Losses = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, Tensor | None, Tensor], Tensor]
"""(x0, t, eps, y, show estimate, augmentation, progress) -> loss of each example (B,)."""


class Batch(NamedTuple):
    """This process's share of a step's examples, timesteps, noise and loss weights, each (B, ...).

    The classes y and the augmentation labels may be None. `progress` is the share of the run that is done, a scalar.
    """

    x0: Tensor
    t: Tensor
    eps: Tensor
    weights: Tensor
    y: Tensor | None
    augmentation: Tensor | None
    progress: Tensor


class Trainer:
    """The network, its average and the optimizer of a run. Each of several processes trains on its part of a batch."""

    def __init__(self, config: TrainConfig, table: Batches, device: torch.device) -> None:
        self.config = config
        self.table = table
        self.classes = table.classes if isinstance(config.conditioning, ClassLabels) else []
        self.device = device
        configure_arithmetic(config.train.precision, config.train.deterministic, same_shapes=True)
        self.timeline = new_timeline(config.train, len(table))
        self.step = 0  # steps done
        self.lr = 0.0  # of the last one
        self.is_sharded = collectives.world_size() > 1 and config.distributed.strategy == "fsdp"
        # Sharded parameters support no other layout.
        layout = torch.contiguous_format if self.is_sharded or device.type == "mps" else torch.channels_last
        rng.seed_everything(config.train.seed, "network")
        network = network_of(config, self.classes)
        self.network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = Ema(self.network)
        self.dtype = resolve_precision(config.train.precision, device)
        images = self.steps * config.train.batch_size
        compiled = should_compile(config.compile, device, images >= IMAGES_WORTH_COMPILING)
        self.wrapped: nn.Module = self.network
        if collectives.world_size() > 1:
            strategy = config.distributed.strategy
            self.wrapped = wrap_distributed(self.network, self.ema.network, strategy, device, self.dtype, compiled)
        self.averages = PowerAverages(config.train.ema_lengths or [], self.network)
        self.optimizer = build_optimizer(config.train, self.network, self.dtype)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.denoiser = build_denoiser(config, self.wrapped, device, self.dtype)
        self.objective = build_objective(config, self.denoiser, self.network)
        self.timestep_sampler = build_timestep_sampler(config, device)
        self.generator = SampleGenerator(
            for_inference(build_denoiser(config, self.ema.network, device, self.dtype), device),
            config.sampler,
            config.dataset.shape,
            device,
            len(self.classes),
            GuidanceRule(config.guidance_scale, config.guidance.bounds(), config.guidance.rescale or 0.0),
        )
        self._losses: Losses = self.objective
        if compiled and collectives.world_size() == 1:  # the noising, the network and the loss in one
            self._losses = torch.compile(self.objective.__call__, dynamic=False)
        # Collectives are not captured, so several processes launch their kernels one by one. Nor are the states of
        # random generators, which recomputed activations need.
        recomputes = getattr(config.model, "gradient_checkpointing", False)
        captures = device.type == "cuda" and collectives.world_size() == 1 and not recomputes
        self._graph = CudaGraphs(self._optimize) if captures else None

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.timeline.steps

    def train_step(self) -> tuple[Tensor, Tensor]:
        """Update the parameters and their average once: return (loss, gradient norm), still on the device.

        Where one of the two is not finite, nothing is updated, and the loss is NaN.
        """
        train = self.config.train
        self.lr = learning_rate(self.step, train, self.steps)
        set_learning_rate(self.optimizer, self.lr)
        rng.seed_everything(train.seed, "dropout", self.step, collectives.rank())
        batch, show_estimate = self._batch(), self._shows_estimate()
        if self._graph is None:
            loss, grad_norm, finite, losses = self._optimize(show_estimate, *batch)
        else:
            loss, grad_norm, finite, losses = self._graph(show_estimate, batch)
        self._update_timestep_sampler(batch.t, losses, finite)
        decay = ema_decay(self.step + 1, train.ema_decay, train.ema_warmup, train.ema_start)
        self.ema.update(self.network, decay, finite)
        self.step += 1
        self.averages.update(self.network, self.step, finite)
        return loss, grad_norm

    def _optimize(
        self,
        show_estimate: bool,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        weights: Tensor,
        y: Tensor | None,
        augmentation: Tensor | None,
        progress: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Forward, backward and the optimizer's step for a batch.

        Returns:
            The loss (NaN where the step was skipped), the gradient norm, whether both were finite, and the
            unweighted loss of each example (B,). It never waits for the device and changes tensors in place, so that
            it can be captured as a CUDA graph.
        """
        accumulate = self.config.train.accumulate
        buffers = list(self.network.buffers())
        before = [buffer.clone() for buffer in buffers]
        seen: list[Tensor] = []
        loss = torch.zeros((), device=self.device)
        columns = [column.chunk(accumulate) for column in (x0, t, eps, weights)]
        labels = [[None] * accumulate if column is None else column.chunk(accumulate) for column in (y, augmentation)]
        for i, (x0, t, eps, weights, y, augmentation) in enumerate(zip(*columns, *labels, strict=True), start=1):
            with gradient_sync(self.wrapped, now=i == accumulate):
                losses = self._losses(x0, t, eps, y, show_estimate, augmentation, progress)
                mean = (weights * losses).mean() / accumulate
                self.scaler.scale(mean).backward()
            loss += mean.detach()
            seen.append(losses.detach())
        loss = collectives.all_reduce_mean(loss)
        grad_norm, finite = self._update(loss)
        restore_unless(finite, buffers, before)
        return torch.where(finite, loss, math.nan), grad_norm, finite, torch.cat(seen)

    def _update_timestep_sampler(self, t: Tensor, losses: Tensor, finite: Tensor) -> None:
        """Let the timestep sampler learn from a step that was not skipped."""
        state = list(self.timestep_sampler.state().values())
        before = [tensor.clone() for tensor in state]
        self.timestep_sampler.update(t, losses)
        restore_unless(finite, state, before)

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters if loss and gradients are finite; return the gradient norm and whether they are.

        The device decides: `found_inf` is how a gradient scaler makes a fused optimizer skip a step.
        """
        train = self.config.train
        self.scaler.unscale_(self.optimizer)
        max_norm = math.inf if train.grad_clip is None else train.grad_clip
        grad_norm = unshard(nn.utils.clip_grad_norm_(self.network.parameters(), max_norm))
        finite = loss.isfinite() & grad_norm.isfinite()
        skip = replicate_like((~finite).float(), next(self.network.parameters()))
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm, finite

    def state(self, sharded: bool = False) -> dict[str, Any]:
        """Return the state for a checkpoint, the same for any number of processes. All ranks must call it.

        Tensors that are sharded are on the CPU of rank 0, and None elsewhere; with `sharded`, they stay as they are.
        """
        whole = torch.Tensor.detach if sharded else unshard_on_rank_zero
        moments = {i: self.optimizer.state[parameter] for i, parameter in enumerate(self.network.parameters())}
        return {
            "step": self.step,
            "phases": [list(phase) for phase in self.timeline.phases],
            "config": to_stored(self.config),
            "plugins": plugins_of(self.config),
            "model": {name: whole(x) for name, x in self.network.state_dict().items()},
            "ema": {name: whole(x) for name, x in self.ema.network.state_dict().items()},
            "averages": self.averages.state(whole),
            "optimizer": {i: {name: whole(x) for name, x in own.items()} for i, own in moments.items() if own},
            "scaler": {key: value for key, value in self.scaler.state_dict().items() if key in SCALER_MOVES},
            "timestep_sampler": self.timestep_sampler.state(),
            "classes": self.classes,
            "shards": {},
        }

    def start_from(self, weights: dict[str, Tensor] | None) -> None:
        """Copy weights, all or some, to the network and its average. Only those of rank 0 are used."""
        self._copy_weights(self.network, weights)
        self._copy_weights(self.ema.network, weights)

    def _copy_weights(self, network: nn.Module, weights: dict[str, Tensor] | None) -> None:
        now = network.state_dict()
        with torch.no_grad():
            for name, x in collectives.tensors_of_rank_zero(weights, self.device):
                local_part(now[name]).copy_(local_part(shard_like(x, now[name])))

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state. Must be called before the first step, by all ranks.

        Of the items `SHARDED`, which are large, only those of rank 0 are used; other ranks need not have them.
        """
        self.step = state["step"]
        self.timeline = resumed_timeline(self.config.train, len(self.table), state["phases"], self.step)
        self._copy_weights(self.network, state.get("model"))
        self._copy_weights(self.ema.network, state.get("ema"))
        parameters = list(self.network.parameters())
        number = {id(parameter): i for i, parameter in enumerate(in_groups(self.optimizer))}
        moments: dict[int, dict[str, Tensor]] = {}
        averages = _flat(state, "averages") if self.averages.tensors else {}
        for (i, name), x in collectives.tensors_of_rank_zero(averages, self.device):
            now = self.averages.tensors[i][name]
            local_part(now).copy_(local_part(shard_like(x, now)))
        for (i, name), x in collectives.tensors_of_rank_zero(_flat(state, "optimizer"), self.device):
            moments.setdefault(number[id(parameters[i])], {})[name] = shard_like(x, parameters[i])
        groups = self.optimizer.state_dict()["param_groups"]  # of the config, which may have changed on resume
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.timestep_sampler.restore(state["timestep_sampler"])
        if self.scaler.is_enabled() and state["scaler"]:  # empty if the run was not in fp16 before
            self.scaler.load_state_dict(self.scaler.state_dict() | state["scaler"])

    def _batch(self) -> Batch:
        """Return this rank's part of the step's examples, timesteps and noise.

        Every rank draws the timesteps and the noise of the whole batch, so that they do not depend on the world size.
        """
        train, own = self.config.train, collectives.shard_slice(self.config.train.batch_size)
        x0, y, augmentation = self.table.batch(self.step, train.batch_size, self.timeline.offset)
        generator = rng.generator(train.seed, "noise", self.step, device=self.device)
        t, weights = self.timestep_sampler.sample(train.batch_size, generator)
        eps = torch.randn((train.batch_size, *x0.shape[1:]), generator=generator, device=self.device)
        progress = torch.full((), self.step / self.steps, device=self.device)  # a fill does not wait for the device
        return Batch(x0, t[own], eps[own], weights[own], self._labels(y), augmentation, progress)

    def _labels(self, y: Tensor | None) -> Tensor | None:
        """Return the class labels with a part of them replaced by the null label; None for an unconditional network."""
        conditioning = self.config.conditioning
        if not isinstance(conditioning, ClassLabels) or y is None:
            return None
        train = self.config.train
        generator = rng.generator(train.seed, "labels", self.step, device=self.device)
        coins = torch.rand(train.batch_size, generator=generator, device=self.device)
        hidden = coins[collectives.shard_slice(train.batch_size)] < conditioning.dropout
        return hide_labels(y, hidden, null=len(self.classes))

    def _shows_estimate(self) -> bool:
        """Return whether this step is self-conditioned. The host decides, so that nothing waits for the device."""
        coin = rng.seed_of(self.config.train.seed, "self_condition", self.step) % 2 == 0
        return self.config.model.self_condition and coin


def _flat(state: dict[str, Any], item: str) -> dict[tuple[int, str], Tensor] | None:
    """Return the averages or the state of the optimizer with keys (number, name); None on ranks without them."""
    return {(i, name): x for i, own in state[item].items() for name, x in own.items()} if item in state else None


def restore_unless(keep: Tensor, now: list[Tensor], before: list[Tensor]) -> None:
    """Set the tensors `now` back to `before` in place unless `keep`, a boolean on the device."""
    for tensor, earlier in zip(now, before, strict=True):
        tensor.copy_(torch.where(keep, tensor, earlier))
