"""What each command is told, as typed dataclasses with cross-checks.

As in options/, the values stand in configs/*.yaml and there is no torch.
"""

from ddpm_cli.config.commands import (
    CheckpointConfig,
    EvaluateConfig,
    ExportConfig,
    ForwardConfig,
    ImportConfig,
    SampleConfig,
)
from ddpm_cli.config.train import FEWEST, PRECISIONS, Distributed, Train, TrainConfig, check_guidance

__all__ = [
    "FEWEST",
    "PRECISIONS",
    "CheckpointConfig",
    "Distributed",
    "EvaluateConfig",
    "ExportConfig",
    "ForwardConfig",
    "ImportConfig",
    "SampleConfig",
    "Train",
    "TrainConfig",
    "check_guidance",
]
