"""Config-driven training and sampling of denoising diffusion models."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm_cli.notebook import TrainedModel

__all__ = ["load"]


def load(
    ckpt: str | os.PathLike[str],
    weights: str = "ema",
    device: str = "auto",
    precision: str = "fp32",
    compile: bool | None = None,  # noqa: A002  # as the key of the commands is named
) -> "TrainedModel":
    """The network of a run folder, a checkpoint or a .safetensors file, ready to draw samples.

    Args: as of `ddpm-sample`. Raises `ddpm_cli.errors.UserError`, whose text is one line.
    """
    from ddpm_cli import notebook  # here, because the commands import this package and must be quick

    return notebook.load(os.fspath(ckpt), weights, device, precision, compile)
