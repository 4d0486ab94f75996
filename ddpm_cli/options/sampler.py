"""The group `sampler`: how x_T becomes x_0."""

from dataclasses import dataclass
from typing import ClassVar

from ddpm_cli.errors import UserError, check, one_of
from ddpm_cli.options.option import Option
from ddpm_cli.options.schedule import Schedule

SPACINGS = ("time", "stride", "logsnr")
THRESHOLDINGS = ("clip", "dynamic", "none")


@dataclass(kw_only=True)
class Sampler(Option):
    """How x_T becomes x_0, at `steps` of the timesteps (None: all T)."""

    group: ClassVar[str] = "sampler"
    steps: int | None
    sections: list[int] | None  # instead of steps: how many in each of as many equal parts of 0..T-1
    spacing: str  # of steps: even in time, DDIM's whole stride, or even in the log-SNR
    thresholding: str  # of the estimate of x0 at each step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None:
            check(self.steps >= 1, "sampler.steps", self.steps, "at least 1, or null for all timesteps")
        if self.sections is not None:
            ok = len(self.sections) > 0 and all(count >= 1 for count in self.sections)
            check(ok, "sampler.sections", self.sections, "counts of at least 1, as in [10,15,20], or null")
        check(self.spacing in SPACINGS, "sampler.spacing", self.spacing, one_of(SPACINGS))
        check(
            self.thresholding in THRESHOLDINGS,
            "sampler.thresholding",
            self.thresholding,
            one_of(THRESHOLDINGS),
        )

    def check_against(self, schedule: Schedule) -> None:
        """Raise `UserError` where the timesteps of `schedule` cannot be divided so."""
        T = schedule.timesteps
        if self.sections is not None:
            size = T // len(self.sections)  # of the last section; the first ones may have one more
            if max(self.sections) > size:
                raise UserError(
                    f"sampler.sections={self.sections}: T={T} in {len(self.sections)} sections leaves {size} timesteps "
                    f"to each, of which {max(self.sections)} cannot be taken; use smaller counts"
                )
        elif self.steps is not None:
            check(self.steps <= T, "sampler.steps", self.steps, f"in 1..{T}, the timesteps of the schedule")
            if self.spacing == "stride" and len(range(0, T, -(-T // self.steps))) != self.steps:
                near = sorted({len(range(0, T, stride)) for stride in range(1, T + 1)}, key=self._far)[:2]
                raise UserError(
                    f"sampler.steps={self.steps}: no whole stride through T={T} takes as many; sampler.spacing=stride "
                    f"takes {one_of(map(str, sorted(near)))}"
                )

    def _far(self, count: int) -> int:
        return abs(count - (self.steps or 0))


@dataclass(kw_only=True)
class Ddpm(Sampler):
    name: str = "ddpm"


@dataclass(kw_only=True)
class Ddim(Sampler):
    name: str = "ddim"
    eta: float  # 0: deterministic; 1: as much noise as ddpm

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.eta <= 1, "sampler.eta", self.eta, "in [0, 1]")


@dataclass(kw_only=True)
class DpmPp2M(Sampler):
    name: str = "dpmpp_2m"


@dataclass(kw_only=True)
class Heun(Sampler):
    name: str = "heun"
