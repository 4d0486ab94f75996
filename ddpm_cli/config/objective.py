"""The groups of the objective: `loss`, `weighting`, `timestep_sampler`, `conditioning`."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ddpm_cli.config.registry import Option
from ddpm_cli.config.schedule import Schedule
from ddpm_cli.errors import check

LEAST_SIGMA_DATA = 1e-3
"""Smallest standard deviation of data, in [-1, 1]; pixels differ by 2 / 255."""


@dataclass(kw_only=True)
class Loss(Option):
    """The distance between the network's output and its target, or a bound on the likelihood.

    A loss that `tunes` is meant for networks that are trained already. One that `repeats_dropout` calls the network
    again with the same dropout masks.
    """

    group: ClassVar[str] = "loss"
    tunes: ClassVar[bool] = False
    repeats_dropout: ClassVar[bool] = False

    def check_against(self, prediction: str, schedule: Schedule, weighting: "Weighting") -> None:
        """Raise `UserError` if this loss cannot train such a network."""


@dataclass(kw_only=True)
class L1(Loss):
    name: str = "l1"


@dataclass(kw_only=True)
class L2(Loss):
    name: str = "l2"


@dataclass(kw_only=True)
class Huber(Loss):
    name: str = "huber"
    delta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.delta < math.inf, "loss.delta", self.delta, "a finite number above 0")


@dataclass(kw_only=True)
class Vlb(Loss):
    """The variational bound in bits per dimension."""

    name: str = "vlb"


@dataclass(kw_only=True)
class Hybrid(Loss):
    """L2 for the mean, and `vlb_weight` times the bound for the variance."""

    name: str = "hybrid"
    vlb_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.vlb_weight <= 1000, "loss.vlb_weight", self.vlb_weight, "in (0, 1000]")


@dataclass(kw_only=True)
class Weighting(Option):
    """The weight of each timestep in the loss."""

    group: ClassVar[str] = "weighting"
    vanishes: ClassVar[bool] = True  # where x_t has no signal


@dataclass(kw_only=True)
class Unweighted(Weighting):
    vanishes: ClassVar[bool] = False
    name: str = "none"


@dataclass(kw_only=True)
class MinSnr(Weighting):
    name: str = "min_snr"
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.gamma < math.inf, "weighting.gamma", self.gamma, "a finite number above 0")


@dataclass(kw_only=True)
class P2(Weighting):
    name: str = "p2"
    k: float
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1e-3 <= self.k <= 1e3, "weighting.k", self.k, "in [0.001, 1000]")
        check(0 <= self.gamma <= 10, "weighting.gamma", self.gamma, "in [0, 10]")


@dataclass(kw_only=True)
class EdmWeighting(Weighting):
    vanishes: ClassVar[bool] = False
    name: str = "edm"
    sigma_data: float | None  # None: sigma_data of the run; a run that has started has a number

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.sigma_data is None or LEAST_SIGMA_DATA <= self.sigma_data <= 100
        check(ok, "weighting.sigma_data", self.sigma_data, f"in [{LEAST_SIGMA_DATA}, 100], or null")


@dataclass(kw_only=True)
class SigmoidWeighting(Weighting):
    name: str = "sigmoid"
    bias: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(-20 <= self.bias <= 20, "weighting.bias", self.bias, "in [-20, 20]")


@dataclass(kw_only=True)
class TimestepSampler(Option):
    """The distribution of the timesteps of a batch."""

    group: ClassVar[str] = "timestep_sampler"


@dataclass(kw_only=True)
class UniformTimesteps(TimestepSampler):
    name: str = "uniform"


@dataclass(kw_only=True)
class LossSecondMoment(TimestepSampler):
    """Importance sampling by the loss; a share `uniform_mix` of the draws is uniform."""

    name: str = "loss_second_moment"
    history: int  # losses remembered for each timestep
    uniform_mix: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.history <= 1000, "timestep_sampler.history", self.history, "in 1..1000")
        ok = 0 < self.uniform_mix <= 1
        check(ok, "timestep_sampler.uniform_mix", self.uniform_mix, "in (0, 1]: each timestep needs a chance")


@dataclass(kw_only=True)
class NormalTimesteps(TimestepSampler):
    """Timesteps of which a function is normal."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(-20 <= self.mean <= 20, "timestep_sampler.mean", self.mean, "in [-20, 20]")
        check(0 < self.std <= 20, "timestep_sampler.std", self.std, "in (0, 20]")


@dataclass(kw_only=True)
class LogNormal(NormalTimesteps):
    """Noise levels whose logarithm is normal (Karras et al. 2022)."""

    name: str = "log_normal"


@dataclass(kw_only=True)
class LogitNormal(NormalTimesteps):
    """Timesteps t / T whose logit is normal (Esser et al. 2024)."""

    name: str = "logit_normal"


@dataclass(kw_only=True)
class LowDiscrepancy(TimestepSampler):
    """Timesteps spread evenly over a batch (Kingma et al. 2021)."""

    name: str = "low_discrepancy"


@dataclass(kw_only=True)
class Conditioning(Option):
    """The input of the network besides x_t and t."""

    group: ClassVar[str] = "conditioning"


@dataclass(kw_only=True)
class Unconditional(Conditioning):
    name: str = "none"


@dataclass(kw_only=True)
class ClassLabels(Conditioning):
    """Class labels, dropped for a share `dropout` of the examples for classifier-free guidance."""

    name: str = "class"
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.dropout < 1, "conditioning.dropout", self.dropout, "in [0, 1)")
