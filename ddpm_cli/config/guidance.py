"""Guidance: how samples are drawn towards a class, or away from a worse network."""

import math
from dataclasses import dataclass

from ddpm_cli.config.objective import ClassLabels, Conditioning
from ddpm_cli.errors import UserError, check


@dataclass(kw_only=True)
class GuidanceOptions:
    """Refinements of guidance_scale; None is the default, or what the run of a checkpoint has."""

    interval: list[float] | None  # of sigma / signal in which guidance acts (Kynkäänniemi et al. 2024)
    rescale: float | None  # share to which the prediction keeps its standard deviation (Lin et al. 2023)

    def __post_init__(self) -> None:
        if self.interval is not None:
            ok = len(self.interval) == 2 and 0 <= self.interval[0] < self.interval[1]
            check(ok, "guidance.interval", self.interval, "two rising numbers from 0 up, as in [0.2,3.0], or null")
        ok = self.rescale is None or 0 <= self.rescale <= 1
        check(ok, "guidance.rescale", self.rescale, "in [0, 1]")

    def bounds(self) -> tuple[float, float]:
        """Return the interval of sigma / signal in which guidance acts."""
        return (self.interval[0], self.interval[1]) if self.interval is not None else (0.0, math.inf)

    def check_has_effect(self, guidance_scale: float) -> None:
        """Raise `UserError` if something is set that has no effect with `guidance_scale`."""
        for key in ("interval", "rescale", "guide"):
            value = getattr(self, key, None)
            if guidance_scale == 1 and value not in (None, 0.0):
                raise UserError(
                    f"guidance.{key}={value}: has no effect with guidance_scale=1.0; set guidance_scale=… too"
                )


@dataclass(kw_only=True)
class GuidanceChanges(GuidanceOptions):
    """The guidance of a command that draws samples."""

    guide: str | None  # a worse network instead of the unconditional one (Karras et al. 2024)


def check_guidance(guidance_scale: float, conditioning: Conditioning, guided_by_network: bool = False) -> None:
    """Raise `UserError` for a scale out of range or a network that does not support guidance."""
    check(0 <= guidance_scale <= 1000, "guidance_scale", guidance_scale, "in [0, 1000]")
    if guidance_scale == 1 or guided_by_network:
        return
    if not isinstance(conditioning, ClassLabels):
        raise UserError(
            f"guidance_scale={guidance_scale}: this network is unconditional; train one with conditioning=class"
        )
    if conditioning.dropout == 0:
        raise UserError(
            f"guidance_scale={guidance_scale}: this network was never trained without a class; train one with "
            "conditioning.dropout=0.1"
        )
