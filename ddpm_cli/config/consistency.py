"""Options of consistency models: `loss=ect`, which trains them, and `sampler=consistency`."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ddpm_cli.config.objective import Loss, Unweighted, Weighting
from ddpm_cli.config.sampler import Sampler
from ddpm_cli.config.schedule import Schedule
from ddpm_cli.errors import UserError, check, one_of

WEIGHTS = ("gap", "level", "edm")


@dataclass(kw_only=True)
class Ect(Loss):
    """Easy Consistency Tuning: the estimates of x0 at two noise levels of an example shall be the same."""

    tunes: ClassVar[bool] = True
    repeats_dropout: ClassVar[bool] = True
    implementation: ClassVar[str | None] = "ddpm_cli.diffusion.consistency:ect"
    name: str = "ect"
    q: float  # each stage divides the distance between the two levels by q
    stages: int  # equal parts of the run
    k: float
    b: float
    c: float | None  # of the pseudo-Huber distance, per dimension; None: the squared error
    weight: str  # of the distance

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 < self.q <= 10**6, "loss.q", self.q, "above 1, at most 1000000")
        check(1 <= self.stages <= 100, "loss.stages", self.stages, "in 1..100")
        check(0 <= self.k <= 1000, "loss.k", self.k, "in [0, 1000]")
        check(0 < self.b <= 1000, "loss.b", self.b, "in (0, 1000]")
        ok = self.c is None or 1e-8 <= self.c < math.inf
        check(ok, "loss.c", self.c, "at least 1e-8, or null for the squared error")
        check(self.weight in WEIGHTS, "loss.weight", self.weight, one_of(WEIGHTS))

    def check_against(self, prediction: str, schedule: Schedule, weighting: Weighting) -> None:
        if prediction == "x0":
            raise UserError(
                "prediction=x0: not with loss=ect, whose estimate of x0 must approach x_t where the noise vanishes; "
                "use edm, v, flow or eps"
            )
        if not isinstance(weighting, Unweighted):
            raise UserError(
                f"weighting={weighting.name}: must be none with loss=ect, whose weights are loss.weight={self.weight}"
            )
        if schedule.ends_without_signal and self.weight != "edm":
            raise UserError(
                f"loss.weight={self.weight}: must be edm with a schedule that ends without signal, because the others "
                "weigh its last timestep, where sampling starts, with 0"
            )


@dataclass(kw_only=True)
class Consistency(Sampler):
    """Alternate between an estimate of x0 and new noise of the next smaller level."""

    implementation: ClassVar[str | None] = "ddpm_cli.diffusion.consistency:consistency"
    name: str = "consistency"
    mid_sigma: float | None  # noise level sigma / signal of the last step; None: the timesteps are those of `spacing`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mid_sigma is None:
            return
        check(0 < self.mid_sigma < math.inf, "sampler.mid_sigma", self.mid_sigma, "above 0, or null")
        asked = "that goes with sampler.mid_sigma; or give sampler.mid_sigma=null"
        check(self.steps is not None, "sampler.steps", self.steps, f"a number {asked}")
        check(self.sections is None, "sampler.sections", self.sections, f"null, the only value {asked}")
        check(self.spacing == "time", "sampler.spacing", self.spacing, f"time, the only value {asked}")
