"""What plugins may rely on: the options of the config groups, and the types that implementations get and return.

Names are only removed or changed with a major version, or a minor one while the major version is 0, after a release in
which they are deprecated. Nothing else in the package is promised. docs/plugins.md shows how to write a plugin.

The options do not import torch, so that `--help` is quick; the other names do, when they are first used. A plugin
imports those in the modules of its implementations.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddpm_cli.config import (
    BetaSchedule,
    Dataset,
    ImageDataset,
    Loss,
    Metric,
    Model,
    Sampler,
    Schedule,
    TimestepSampler,
    Weighting,
    implements,
)
from ddpm_cli.config.model import ImageModel
from ddpm_cli.errors import Failure, UserError, check, one_of

if TYPE_CHECKING:
    from ddpm_cli.data.table import Examples
    from ddpm_cli.diffusion.denoiser import Denoiser, Output
    from ddpm_cli.diffusion.objective import Prediction
    from ddpm_cli.diffusion.predictions import Parameterization
    from ddpm_cli.diffusion.process import Noise, Path, Process
    from ddpm_cli.diffusion.samplers import Denoise, Estimate, Step
    from ddpm_cli.diffusion.timestep_samplers import Uniform
    from ddpm_cli.diffusion.timesteps import Pairs
    from ddpm_cli.models.layers import Embedding
    from ddpm_cli.rng import generator

_LAZY = {
    "Denoise": "diffusion.samplers",
    "Denoiser": "diffusion.denoiser",
    "Embedding": "models.layers",
    "Estimate": "diffusion.samplers",
    "Examples": "data.table",
    "Noise": "diffusion.process",
    "Output": "diffusion.denoiser",
    "Pairs": "diffusion.timesteps",
    "Parameterization": "diffusion.predictions",
    "Path": "diffusion.process",
    "Prediction": "diffusion.objective",
    "Process": "diffusion.process",
    "Step": "diffusion.samplers",
    "Uniform": "diffusion.timestep_samplers",
    "generator": "rng",
}
"""The modules of the names that need torch."""

__all__ = [
    "BetaSchedule",
    "Dataset",
    "Denoise",
    "Denoiser",
    "Embedding",
    "Estimate",
    "Examples",
    "Failure",
    "ImageDataset",
    "ImageModel",
    "Loss",
    "Metric",
    "Model",
    "Noise",
    "Output",
    "Pairs",
    "Parameterization",
    "Path",
    "Prediction",
    "Process",
    "Sampler",
    "Schedule",
    "Step",
    "TimestepSampler",
    "Uniform",
    "UserError",
    "Weighting",
    "check",
    "generator",
    "implements",
    "one_of",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ddpm_cli.{_LAZY[name]}"), name)
