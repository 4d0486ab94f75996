"""The config group `schedule`: how much signal and noise x_t has."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ddpm_cli.config.registry import Option
from ddpm_cli.errors import UserError, check


@dataclass(kw_only=True)
class Schedule(Option):
    """The amplitudes of x0 and eps in x_t; `timesteps` is T.

    `predictions` are those that go with it. An implementation returns a `Path`.
    """

    group: ClassVar[str] = "schedule"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "x0", "v", "edm")
    timesteps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.timesteps <= 100_000, "schedule.timesteps", self.timesteps, "in 1..100000")

    @property
    def ends_without_signal(self) -> bool:
        """Whether x_T is pure noise."""
        return False


@dataclass(kw_only=True)
class BetaSchedule(Schedule):
    """A variance-preserving process. An implementation returns its T variances beta_t."""

    zero_terminal_snr: bool  # stretch it so that x_T is pure noise (Lin et al. 2023)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_terminal_snr:
            check(self.timesteps >= 2, "schedule.timesteps", self.timesteps, "at least 2 for zero_terminal_snr")

    @property
    def ends_without_signal(self) -> bool:
        return self.zero_terminal_snr


@dataclass(kw_only=True)
class Ramp(BetaSchedule):
    """Betas that rise from `beta_start` to `beta_end`; `rescale` multiplies both by 1000/T."""

    beta_start: float
    beta_end: float
    rescale: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1e-8 <= self.beta_start < 1, "schedule.beta_start", self.beta_start, "in [1e-8, 1)")
        bounds = f"in [schedule.beta_start={self.beta_start}, 1)"
        check(self.beta_start <= self.beta_end < 1, "schedule.beta_end", self.beta_end, bounds)
        if self.scale * self.beta_end >= 1:
            raise UserError(
                f"schedule.timesteps={self.timesteps}: schedule.rescale=true scales schedule.beta_end={self.beta_end} "
                f"by 1000/{self.timesteps} to {self.scale * self.beta_end:.3g}, which must stay below 1; "
                f"use more than {int(1000 * self.beta_end)} timesteps or schedule.rescale=false"
            )

    @property
    def scale(self) -> float:
        """Factor of the betas."""
        return 1000 / self.timesteps if self.rescale else 1.0


@dataclass(kw_only=True)
class Linear(Ramp):
    name: str = "linear"


@dataclass(kw_only=True)
class Quadratic(Ramp):
    name: str = "quadratic"


@dataclass(kw_only=True)
class Sigmoid(Ramp):
    name: str = "sigmoid"


@dataclass(kw_only=True)
class Cosine(BetaSchedule):
    name: str = "cosine"
    s: float  # keeps the first betas from being too small
    max_beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.s < 1, "schedule.s", self.s, "in [0, 1)")
        check(0 < self.max_beta < 1, "schedule.max_beta", self.max_beta, "in (0, 1)")


@dataclass(kw_only=True)
class Constant(BetaSchedule):
    name: str = "constant"
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1e-8 <= self.beta < 1, "schedule.beta", self.beta, "in [1e-8, 1)")


@dataclass(kw_only=True)
class EdmPath(Schedule):
    """The variance-exploding process of Karras et al. 2022: signal 1, sigma from `sigma_min` to `sigma_max`."""

    name: str = "edm"
    predictions: ClassVar[tuple[str, ...]] = ("edm",)
    sigma_min: float
    sigma_max: float
    rho: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.timesteps >= 2, "schedule.timesteps", self.timesteps, "at least 2 for schedule=edm")
        check(1e-6 <= self.sigma_min < math.inf, "schedule.sigma_min", self.sigma_min, "at least 1e-6")
        bounds = f"above schedule.sigma_min={self.sigma_min}, at most 1e6"
        check(self.sigma_min < self.sigma_max <= 1e6, "schedule.sigma_max", self.sigma_max, bounds)
        check(1 <= self.rho <= 100, "schedule.rho", self.rho, "in [1, 100]")


@dataclass(kw_only=True)
class FlowPath(Schedule):
    """The straight path from the data to noise: signal 1 - u, sigma u."""

    name: str = "flow"
    predictions: ClassVar[tuple[str, ...]] = ("flow", "x0")
    shift: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.timesteps >= 2, "schedule.timesteps", self.timesteps, "at least 2 for schedule=flow")
        check(0.01 <= self.shift <= 100, "schedule.shift", self.shift, "in [0.01, 100]")

    @property
    def ends_without_signal(self) -> bool:
        return True
