"""The config group `sampler`: how samples are drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ddpm_cli.config.dataset import Dataset
from ddpm_cli.config.registry import Option
from ddpm_cli.config.schedule import Schedule
from ddpm_cli.errors import UserError, check, one_of

SPACINGS = ("time", "trailing", "stride", "quadratic", "logsnr", "karras")
THRESHOLDINGS = ("auto", "clip", "dynamic", "none")


@dataclass(kw_only=True)
class Sampler(Option):
    """A sampler that visits `steps` of the timesteps (None: all T)."""

    group: ClassVar[str] = "sampler"
    calls_per_step: ClassVar[int] = 1  # network calls, without guidance
    steps: int | None
    sections: list[int] | None  # instead of steps: their numbers in equal parts of 0..T-1
    spacing: str  # where the timesteps lie, see `timesteps.py`
    rho: float = 7.0  # of spacing=karras; a default, because plugins have samplers without it
    thresholding: str  # of the estimate of x0 at each step; auto: clip for images, none for points

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None:
            check(self.steps >= 1, "sampler.steps", self.steps, "at least 1, or null for all timesteps")
        if self.sections is not None:
            ok = len(self.sections) > 0 and all(count >= 1 for count in self.sections)
            check(ok, "sampler.sections", self.sections, "counts of at least 1, as in [10,15,20], or null")
        check(self.spacing in SPACINGS, "sampler.spacing", self.spacing, one_of(SPACINGS))
        check(1 <= self.rho <= 100, "sampler.rho", self.rho, "in [1, 100]")
        check(
            self.thresholding in THRESHOLDINGS,
            "sampler.thresholding",
            self.thresholding,
            one_of(THRESHOLDINGS),
        )

    def for_data(self, dataset: Dataset) -> "Sampler":
        """Return this sampler with `auto` replaced by what suits the data of `dataset`."""
        if self.thresholding != "auto":
            return self
        return replace(self, thresholding="clip" if dataset.bounded else "none")

    def changed(self, changes: Mapping[str, Any]) -> "Sampler":
        """Return this sampler with some values changed. Raise `UserError` for keys that it does not have."""
        for key in changes:
            if key == "name" or key not in {field.name for field in fields(self)}:
                raise UserError(f"sampler.{key}: the run's sampler={self.name} has no such key; choose another sampler")
        sections = {"sections": None} if changes.get("steps") else {}
        return replace(self, **{**sections, **changes})

    def check_against(self, schedule: Schedule, dataset: Dataset) -> None:
        """Raise `UserError` if `schedule` has too few timesteps or the data of `dataset` exceed the thresholds.

        Whether the first timestep is noisy enough is checked by `timesteps.check_start`.
        """
        if self.thresholding in ("clip", "dynamic") and not dataset.bounded:
            raise UserError(
                f"sampler.thresholding={self.thresholding}: must be auto or none for dataset={dataset.name}, "
                "whose data exceed [-1, 1]"
            )
        if self.sections is not None:
            self._check_sections(self.sections, schedule.timesteps)
        elif self.steps is not None:
            self._check_steps(self.steps, schedule.timesteps)

    def _check_sections(self, sections: list[int], timesteps: int) -> None:
        sizes = section_sizes(timesteps, len(sections))
        for i, (count, size) in enumerate(zip(sections, sizes, strict=True)):
            if count > size:
                raise UserError(
                    f"sampler.sections={sections}: section {i} has only {size} of the T={timesteps} timesteps, fewer "
                    f"than {count}; use smaller counts"
                )

    def _check_steps(self, steps: int, timesteps: int) -> None:
        check(
            steps <= timesteps,
            "sampler.steps",
            steps,
            f"in 1..{timesteps}, the timesteps of the schedule (schedule.timesteps)",
        )
        if self.spacing == "stride" and len(stride(timesteps, steps)) != steps:
            counts = {len(range(0, timesteps, size)) for size in range(1, timesteps + 1)}
            near = sorted(sorted(counts, key=lambda count: abs(count - steps))[:2])
            raise UserError(
                f"sampler.steps={steps}: no integer stride through T={timesteps} has that many steps; with "
                f"sampler.spacing=stride use {one_of(map(str, near))}"
            )


def stride(timesteps: int, steps: int) -> list[int]:
    """Return 0, s, 2s, ... below T, with s = ceil(T / steps), as in DDIM (Song et al. 2020, appendix D.2)."""
    return list(range(0, timesteps, -(-timesteps // steps)))


def section_sizes(timesteps: int, sections: int) -> list[int]:
    """Return the sizes of the parts of 0..T-1, which differ by at most one; the first ones are larger."""
    return [timesteps // sections + (i < timesteps % sections) for i in range(sections)]


@dataclass(kw_only=True)
class Ddpm(Sampler):
    name: str = "ddpm"


@dataclass(kw_only=True)
class NoisySampler(Sampler):
    """A sampler that adds a share of noise at each step."""

    eta: float  # 0: deterministic; 1: as much as ddpm, or as the reverse SDE

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.eta <= 1, "sampler.eta", self.eta, "in [0, 1]")


@dataclass(kw_only=True)
class Ddim(NoisySampler):
    name: str = "ddim"


@dataclass(kw_only=True)
class DpmPp2M(Sampler):
    implementation: ClassVar[str] = "ddpm_cli.diffusion.multistep:dpmpp_2m"
    name: str = "dpmpp_2m"


@dataclass(kw_only=True)
class DpmPp2MSde(NoisySampler):
    implementation: ClassVar[str] = "ddpm_cli.diffusion.multistep:dpmpp_2m_sde"
    name: str = "dpmpp_2m_sde"


@dataclass(kw_only=True)
class DpmPp3M(Sampler):
    implementation: ClassVar[str] = "ddpm_cli.diffusion.multistep:dpmpp_3m"
    name: str = "dpmpp_3m"


@dataclass(kw_only=True)
class UniPc(Sampler):
    implementation: ClassVar[str] = "ddpm_cli.diffusion.multistep:unipc"
    name: str = "unipc"
    order: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.order in (2, 3), "sampler.order", self.order, "2 or 3")


@dataclass(kw_only=True)
class Heun(Sampler):
    calls_per_step: ClassVar[int] = 2
    name: str = "heun"


@dataclass(kw_only=True)
class Euler(Sampler):
    name: str = "euler"


@dataclass(kw_only=True)
class Edm(Sampler):
    calls_per_step: ClassVar[int] = 2
    name: str = "edm"
    s_churn: float  # noise added in all steps together, as a share of the noise there is; 0: none, as heun
    s_tmin: float  # bounds of sigma / signal between which it is added
    s_tmax: float
    s_noise: float  # factor of its standard deviation

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.s_churn < math.inf, "sampler.s_churn", self.s_churn, "0 or more")
        check(0 <= self.s_tmin < math.inf, "sampler.s_tmin", self.s_tmin, "0 or more")
        bounds = f"above sampler.s_tmin={self.s_tmin}, and finite"
        check(self.s_tmin < self.s_tmax < math.inf, "sampler.s_tmax", self.s_tmax, bounds)
        check(0 < self.s_noise <= 2, "sampler.s_noise", self.s_noise, "in (0, 2]")
