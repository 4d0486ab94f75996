"""Convert a noise schedule and its sampler to and from the settings of diffusers' `DDPMScheduler`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddpm_cli.config import BetaSchedule, Cosine, Ddpm, Linear, Quadratic, Sampler, Schedule, Sigmoid, TrainConfig
from ddpm_cli.diffusion.schedules import betas_of
from ddpm_cli.errors import UserError, one_of
from ddpm_cli.export.settings import complete, require

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small"} | {
    name: name for name in ("fixed_large", "learned_range")
}
"""Map from variance types of diffusers to ours. The two types of fixed_small give the same samples."""
COSINE: dict[str, Any] = {"s": 0.008, "max_beta": 0.999}
"""Constants of the schedule squaredcos_cap_v2."""
SPACINGS = {"leading": "stride", "linspace": "time", "trailing": "trailing"}
"""Map from spacings of timesteps of diffusers to ours, which only matter to a sampler of fewer than T steps."""
UNBOUNDED = 1e9
"""Value of sample_max_value that leaves dynamic thresholds without an upper limit."""
DEFAULTS: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "variance_type": "fixed_small",
}
"""Default settings of DDPMScheduler, used for keys that a file does not contain."""


@dataclass(frozen=True)
class SchedulerOptions:
    """The part of `TrainConfig` that a DDPMScheduler defines."""

    schedule: Schedule
    sampler: Sampler
    prediction: str
    variance: str


def to_scheduler_config(config: TrainConfig) -> dict[str, Any]:
    """Return the content of scheduler_config.json for the DDPMScheduler equivalent to sampler=ddpm with `config`.

    Raise `UserError` for a path or a prediction that it does not have.
    """
    if not isinstance(config.schedule, BetaSchedule) or config.prediction not in PREDICTIONS:
        raise UserError(
            f"format=diffusers: DDPMScheduler has no schedule={config.schedule.name} with prediction="
            f"{config.prediction}; it needs a variance-preserving schedule and prediction={one_of(PREDICTIONS)}; use "
            "format=safetensors or onnx"
        )
    thresholding = config.sampler.thresholding
    spacings = {ours: theirs for theirs, ours in SPACINGS.items()}
    return (
        DEFAULTS
        | _schedule_to_settings(config.schedule)
        | {
            "clip_sample": thresholding == "clip",
            "num_train_timesteps": config.schedule.timesteps,
            "prediction_type": PREDICTIONS[config.prediction],
            "sample_max_value": UNBOUNDED,
            "thresholding": thresholding == "dynamic",
            "timestep_spacing": spacings.get(config.sampler.spacing, "linspace"),
            "variance_type": config.variance,
        }
    )


def from_scheduler_config(settings: Mapping[str, Any]) -> SchedulerOptions:
    """Convert the content of scheduler_config.json to options of ours.

    The sampler uses all timesteps. Raise `UserError` if a setting is unknown or not supported.
    """
    full = complete(settings, DEFAULTS)
    require(full["trained_betas"] is None, full, "trained_betas", "null; a list of betas cannot be imported")
    leading = full["timestep_spacing"] == "leading"
    require(not leading or full["steps_offset"] == 0, full, "steps_offset", "0, because all timesteps are used")
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    named = {"prediction_type": predictions, "variance_type": VARIANCES, "timestep_spacing": SPACINGS}
    for key, known in named.items():
        require(full[key] in known, full, key, one_of(known))
    spacing = SPACINGS[full["timestep_spacing"]]
    return SchedulerOptions(
        _schedule_from_settings(full),
        Ddpm(steps=None, sections=None, spacing=spacing, thresholding=_thresholding(full)),
        predictions[full["prediction_type"]],
        VARIANCES[full["variance_type"]],
    )


def _thresholding(full: Mapping[str, Any]) -> str:
    """Return the thresholding of the estimates of x0. Raise `UserError` if it is not supported.

    DDPMScheduler divides them by s, the quantile of their magnitudes but at least 1 and at most sample_max_value. With
    a limit of 1 that is clipping.
    """
    if full["thresholding"]:
        ratio, limit = "dynamic_thresholding_ratio", full["sample_max_value"]
        if limit == 1:
            return "clip"
        require(limit >= UNBOUNDED, full, "sample_max_value", f"1.0 (clip), or {UNBOUNDED:.0e} or more (no limit)")
        require(full[ratio] == DEFAULTS[ratio], full, ratio, DEFAULTS[ratio])
        return "dynamic"
    if full["clip_sample"]:
        require(full["clip_sample_range"] == 1, full, "clip_sample_range", "1.0, or clip_sample=false")
        return "clip"
    return "none"


def _schedule_to_settings(schedule: BetaSchedule) -> dict[str, Any]:
    """Return the settings of `schedule`: a name and end points if DDPMScheduler supports it, otherwise all betas."""
    match schedule:
        case BetaSchedule(zero_terminal_snr=True):
            pass
        case Linear() | Quadratic() | Sigmoid():
            names = {Linear: "linear", Quadratic: "scaled_linear", Sigmoid: "sigmoid"}
            ends = {"beta_start": schedule.scale * schedule.beta_start, "beta_end": schedule.scale * schedule.beta_end}
            return {"beta_schedule": names[type(schedule)], **ends}
        case Cosine(s=s, max_beta=max_beta) if {"s": s, "max_beta": max_beta} == COSINE:
            return {"beta_schedule": "squaredcos_cap_v2"}
    return {"trained_betas": betas_of(schedule).tolist()}


def _schedule_from_settings(full: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a complete set of settings. Raise `UserError` if it is not supported."""
    common: dict[str, Any] = {
        "timesteps": int(full["num_train_timesteps"]),
        "zero_terminal_snr": bool(full["rescale_betas_zero_snr"]),
    }
    ends: dict[str, Any] = {
        "beta_start": float(full["beta_start"]),
        "beta_end": float(full["beta_end"]),
        "rescale": False,
    }
    match full["beta_schedule"]:
        case "linear":
            return Linear(**common, **ends)
        case "scaled_linear":
            return Quadratic(**common, **ends)
        case "sigmoid":
            return Sigmoid(**common, **ends)
        case "squaredcos_cap_v2":
            return Cosine(**common, **COSINE)
    known = ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2")
    raise UserError(f"beta_schedule={full['beta_schedule']}: must be {one_of(known)}")
