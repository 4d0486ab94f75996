"""Convert a noise schedule and its sampler to and from the settings of diffusers' `DDPMScheduler`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddpm_cli.config import Cosine, Ddpm, Linear, Quadratic, Sampler, Schedule, Sigmoid, TrainConfig
from ddpm_cli.diffusion.schedules import betas_of
from ddpm_cli.errors import UserError, one_of

log = logging.getLogger(__name__)

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small"} | {
    name: name for name in ("fixed_large", "learned_range")
}
"""Map from variance types of diffusers to ours. The two types of fixed_small give the same samples."""
COSINE: dict[str, Any] = {"s": 0.008, "max_beta": 0.999}
"""Constants of the schedule squaredcos_cap_v2."""
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
    """Return the content of scheduler_config.json for the DDPMScheduler equivalent to sampler=ddpm with `config`."""
    thresholding = config.sampler.thresholding
    if thresholding == "dynamic":
        log.warning(
            "sampler.thresholding=dynamic: diffusers interpolates between pixels to find its threshold, so its images "
            "differ slightly from those of ddpm-sample"
        )
    return (
        DEFAULTS
        | _schedule_to_settings(config.schedule)
        | {
            "clip_sample": thresholding == "clip",
            "num_train_timesteps": config.schedule.timesteps,
            "prediction_type": PREDICTIONS[config.prediction],
            "sample_max_value": UNBOUNDED,
            "thresholding": thresholding == "dynamic",
            "timestep_spacing": "leading" if config.sampler.spacing == "stride" else "linspace",
            "variance_type": config.variance,
        }
    )


def from_scheduler_config(settings: Mapping[str, Any]) -> SchedulerOptions:
    """Convert the content of scheduler_config.json to options of ours.

    The sampler uses all timesteps. Raises `UserError` if a setting is unknown or not supported.
    """
    public = {key: value for key, value in settings.items() if key == "_class_name" or not key.startswith("_")}
    if unknown := sorted(public.keys() - DEFAULTS.keys()):
        raise UserError(f"{unknown[0]}: not a supported setting of a DDPMScheduler")
    full = DEFAULTS | public
    for key in ("_class_name", "clip_sample_range", "dynamic_thresholding_ratio", "trained_betas"):
        if full[key] != DEFAULTS[key]:
            raise UserError(f"{key}={str(full[key])[:50]}: must be {DEFAULTS[key]}")
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    for key, known in {"prediction_type": predictions, "variance_type": VARIANCES}.items():
        if full[key] not in known:
            raise UserError(f"{key}={full[key]}: must be {one_of(known)}")
    clipped = "clip" if full["clip_sample"] else "none"
    thresholding = "dynamic" if full["thresholding"] else clipped
    return SchedulerOptions(
        _schedule_from_settings(full),
        Ddpm(steps=None, sections=None, spacing="time", thresholding=thresholding),
        predictions[full["prediction_type"]],
        VARIANCES[full["variance_type"]],
    )


def _schedule_to_settings(schedule: Schedule) -> dict[str, Any]:
    """Return the settings of `schedule`: a name and end points if DDPMScheduler supports it, otherwise all betas."""
    match schedule:
        case Schedule(zero_terminal_snr=True):
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
