"""Config-driven training and sampling of denoising diffusion models.

The functions import what they need when they are called, because the commands import this package and must be quick.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_cli.notebook import TrainedModel
    from ddpm_cli.sampling.milestone import Milestone

__all__ = ["evaluate", "load", "sample", "train"]


def train(*overrides: str, on_milestone: "Callable[[Milestone], bool | None] | None" = None) -> float | None:
    """Do what `ddpm-train <overrides>` does; return the metric of train.report, or the last loss.

    Args:
        overrides: as typed on the command line, for example "dataset=digits", "steps=1000", "resume=outputs/run".
        on_milestone: called at each milestone, when its checkpoint and samples are written. Training ends if it returns
            True; the run can be resumed. With several processes it is called on rank 0, and must be a function of a
            module.

    Raise `ddpm_cli.errors.UserError`, whose text is one line, for a config that cannot run.
    """
    from ddpm_cli import commands

    return commands.train(*overrides, on_milestone=on_milestone)


def sample(*overrides: str) -> Path:
    """Do what `ddpm-sample <overrides>` does; return the folder of the samples. Raise `ddpm_cli.errors.UserError`."""
    from ddpm_cli import commands

    return commands.sample(*overrides)


def evaluate(*overrides: str) -> dict[str, Any]:
    """Do what `ddpm-evaluate <overrides>` does; return the content of evaluation.json.

    Raise `ddpm_cli.errors.UserError`.
    """
    from ddpm_cli import commands

    return commands.evaluate(*overrides)


def load(
    ckpt: str | os.PathLike[str],
    weights: str = "ema",
    device: str = "auto",
    precision: str = "fp32",
    compile: bool | None = None,  # noqa: A002  # as the key of the commands is named
) -> "TrainedModel":
    """Return the network of a run folder, a checkpoint or a .safetensors file, ready to draw samples.

    The arguments are those of `ddpm-sample`. Raise `ddpm_cli.errors.UserError`, whose text is one line.
    """
    from ddpm_cli import notebook

    return notebook.load(os.fspath(ckpt), weights, device, precision, compile)
