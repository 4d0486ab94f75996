"""The commands as functions of Python. They take the overrides that a user would type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_cli.cli import evaluate as evaluate_command
from ddpm_cli.cli import sample as sample_command
from ddpm_cli.cli import train as train_command
from ddpm_cli.cli.app.compose import compose
from ddpm_cli.errors import UserError
from ddpm_cli.sampling.milestone import Milestone
from ddpm_cli.training.start import TrainingJob, launch_training


def train(*overrides: str, on_milestone: Callable[[Milestone], bool | None] | None = None) -> float | None:
    """Train; see `ddpm_cli.train`."""
    config, full = compose(train_command.COMMAND, overrides)
    if config.sweep.resume is not None:
        raise UserError(f"sweep.resume={config.sweep.resume}: resumes a sweep; use ddpm-train -m")
    if config.sweep.prune is not None:
        raise UserError(f"sweep.prune={config.sweep.prune}: compares the runs of a sweep; use ddpm-train -m")
    folder = Path(config.out).absolute()  # on_milestone may change the working folder
    return launch_training(TrainingJob(config, folder, full, config.resume, tuple(full), on_milestone))


def sample(*overrides: str) -> Path:
    """Draw samples; see `ddpm_cli.sample`."""
    config, _ = compose(sample_command.COMMAND, overrides)
    sample_command.run(config, Path(config.out))
    return Path(config.out)


def evaluate(*overrides: str) -> dict[str, Any]:
    """Evaluate a checkpoint or samples; see `ddpm_cli.evaluate`."""
    config, full = compose(evaluate_command.COMMAND, overrides)
    return evaluate_command.evaluate_into(Path(config.out), config, full)
