"""At which timesteps a batch is trained, and the weights that keep the loss's expectation."""

import torch
from torch import Tensor

from ddpm_cli.config import LossSecondMoment, TimestepSampler, UniformTimesteps
from ddpm_cli.distributed import collectives


class Uniform:
    """Every timestep alike."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(t, weights), both (count,) on the generator's device: of 0..T-1, and what to multiply their losses by."""
        t = torch.randint(self.timesteps, (count,), generator=generator, device=generator.device)
        return t, torch.ones(count, device=generator.device)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the unweighted `losses` (B,) at timesteps t (B,)."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a kept state."""


class SecondMoment(Uniform):
    """p(t) proportional to the root of the mean squared loss lately seen at t (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every timestep has `history` losses; then `uniform_mix` of the probability stays uniform, so that
    each timestep is seen again. A loss counts 1 / (T p(t)) times, which leaves the expectation as it was. All
    processes of a run learn from the losses of all, in order of their rank, and so agree on p. Nothing here
    makes the host wait for the device.
    """

    def __init__(self, timesteps: int, history: int, uniform_mix: float, device: torch.device | str) -> None:
        super().__init__(timesteps)
        self.history, self.uniform_mix = history, uniform_mix
        self.seen = torch.zeros(timesteps, dtype=torch.int64, device=device)
        # A ring of losses per timestep, and one place more for those that would be overwritten at once.
        self.losses = torch.zeros(timesteps, history + 1, device=device)

    def probabilities(self) -> Tensor:
        """p(t): (T,), sums to 1."""
        rms = self.losses[:, : self.history].square().mean(dim=1).sqrt()
        total = rms.sum()  # not finite after a loss that was not: uniform until it is forgotten
        usable = (self.seen >= self.history).all() & (total > 0) & total.isfinite()
        wanted = torch.where(usable, rms, 1.0)
        return (1 - self.uniform_mix) * wanted / wanted.sum() + self.uniform_mix / self.timesteps

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        spots = torch.rand(count, generator=generator, device=generator.device)
        t = torch.searchsorted(p.cumsum(0), spots).clamp(max=self.timesteps - 1)
        return t, 1 / (self.timesteps * p[t])

    def update(self, t: Tensor, losses: Tensor) -> None:
        t, losses = collectives.all_gather(t), collectives.all_gather(losses.float())
        t, order = t.sort(stable=True)  # so that those of a timestep stand together, in their order
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


def build_timestep_sampler(sampler: TimestepSampler, timesteps: int, device: torch.device | str) -> Uniform:
    """The sampler of 0..T-1 that the config names."""
    match sampler:
        case UniformTimesteps():
            return Uniform(timesteps)
        case LossSecondMoment(history=history, uniform_mix=mix):
            return SecondMoment(timesteps, history, mix, device)
    raise TypeError(f"no timestep sampler for {sampler}")
