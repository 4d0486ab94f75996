"""Distributions of the timesteps of a batch, and the weights that keep the expectation of the loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.config import LogitNormal, LogNormal, LossSecondMoment, LowDiscrepancy, UniformTimesteps, implements
from ddpm_cli.diffusion.process import Process
from ddpm_cli.distributed import collectives


@implements(UniformTimesteps)
class Uniform:
    """Draw all timesteps with the same probability."""

    def __init__(self, process: Process, device: torch.device | str) -> None:
        self.timesteps = process.timesteps

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return timesteps in 0..T-1 and the weights of their losses, both (count,) on the generator's device."""
        t = torch.randint(self.timesteps, (count,), generator=generator, device=generator.device)
        return t, torch.ones(count, device=generator.device)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Update the distribution with the unweighted `losses` (B,) at timesteps t (B,)."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to store in a checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore a state that `state` returned."""


@implements(LossSecondMoment)
class SecondMoment(Uniform):
    """Draw t in proportion to the root mean square of its recent losses (Nichol & Dhariwal 2021, eq. 18).

    The distribution is uniform until every timestep has `history` losses. After that, a share `uniform_mix` of the
    probability stays uniform, so that each timestep is drawn again. A loss is weighted by 1 / (T p(t)), which keeps
    the expectation. Each rank learns from the losses of all ranks in the same order, so all have the same p. The host
    never waits for the device.
    """

    def __init__(self, process: Process, device: torch.device | str, history: int, uniform_mix: float) -> None:
        super().__init__(process, device)
        timesteps = self.timesteps
        self.history, self.uniform_mix = history, uniform_mix
        self.seen = torch.zeros(timesteps, dtype=torch.int64, device=device)
        # A ring buffer per timestep, and an extra column for losses that later ones of the same batch replace.
        self.losses = torch.zeros(timesteps, history + 1, device=device)

    def probabilities(self) -> Tensor:
        """Return p(t): (T,), with sum 1. In float32, rare timesteps would be drawn too often or never."""
        rms = self.losses[:, : self.history].square().mean(dim=1).sqrt().to(_precise(self.losses.device))
        total = rms.sum()  # if a loss was not finite, p is uniform until that loss is overwritten
        usable = (self.seen >= self.history).all() & (total > 0) & total.isfinite()
        wanted = torch.where(usable, rms, 1.0)
        return (1 - self.uniform_mix) * wanted / wanted.sum() + self.uniform_mix / self.timesteps

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        spots = torch.rand(count, generator=generator, device=generator.device, dtype=p.dtype)
        t = torch.searchsorted(cumulative(p), spots).clamp(max=self.timesteps - 1)
        return t, (1 / (self.timesteps * p[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        t, losses = collectives.all_gather(t), collectives.all_gather(losses.float())
        t, order = t.sort(stable=True)  # groups the losses of a timestep and keeps their order
        first = torch.searchsorted(t, t)
        earlier = torch.arange(len(t), device=t.device) - first
        count = torch.searchsorted(t, t, right=True) - first
        place = (self.seen[t] + earlier) % self.history
        overwritten = count - earlier > self.history
        self.losses[t, torch.where(overwritten, self.history, place)] = losses[order]
        self.seen.scatter_add_(0, t, torch.ones_like(t))

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen, "losses": self.losses}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.seen.copy_(state["seen"])
        self.losses.copy_(state["losses"])


class Normal(Uniform):
    """Draw timesteps of which a function is normal.

    Losses are not weighted: the distribution is part of the objective.
    """

    def __init__(self, process: Process, device: torch.device | str, mean: float, std: float) -> None:
        super().__init__(process, device)
        self.mean, self.std = mean, std

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        normal = torch.randn(count, generator=generator, device=generator.device)
        return self.timesteps_of(self.mean + self.std * normal), torch.ones(count, device=generator.device)

    def timesteps_of(self, values: Tensor) -> Tensor:
        """Return the timesteps whose function has these values, (B,)."""
        raise NotImplementedError


@implements(LogNormal)
class LogNormalLevels(Normal):
    """Draw log(sigma / signal) from a normal distribution (Karras et al. 2022, arXiv:2206.00364, section 5).

    The timestep is the one whose level is the nearest.
    """

    def __init__(self, process: Process, device: torch.device | str, mean: float, std: float) -> None:
        super().__init__(process, device, mean, std)
        levels = torch.tensor([-process.logsnr(t) / 2 for t in range(self.timesteps)], dtype=torch.float64)
        self.bounds = ((levels[1:] + levels[:-1]) / 2).float().to(device)

    def timesteps_of(self, values: Tensor) -> Tensor:
        return torch.searchsorted(self.bounds, values)


@implements(LogitNormal)
class LogitNormalTimesteps(Normal):
    """Draw t / T whose logit is normal (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    def timesteps_of(self, values: Tensor) -> Tensor:
        return _timesteps_of(values.sigmoid(), self.timesteps)


@implements(LowDiscrepancy)
class Stratified(Uniform):
    """Draw one timestep from each of B equal parts of 0..T-1, all at the same random offset.

    Each is uniform, and their mean loss varies less (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
    """

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        offset = torch.rand(1, generator=generator, device=generator.device)
        order = torch.arange(count, device=generator.device)
        t = _timesteps_of((offset + order) / count, self.timesteps)
        return t, torch.ones(count, device=generator.device)


def _timesteps_of(u: Tensor, timesteps: int) -> Tensor:
    """Return the timesteps, of 0..T-1, in whose T-th parts of [0, 1] the numbers u (B,) are."""
    return (u * timesteps).long().clamp(max=timesteps - 1)


def cumulative(p: Tensor) -> Tensor:
    """Return the cumulative sums of p (T,).

    With deterministic algorithms they are computed from the sums of blocks, since torch.cumsum is not deterministic on
    CUDA.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return p.cumsum(0)
    size = math.isqrt(len(p) - 1) + 1
    blocks = F.pad(p, (0, size**2 - len(p))).view(size, size)
    within = blocks[:, None, :].expand(-1, size, -1).tril().sum(dim=2)
    before = blocks.sum(dim=1).expand(size, -1).tril(-1).sum(dim=1)
    return (before[:, None] + within).flatten()[: len(p)]


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
