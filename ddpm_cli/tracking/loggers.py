"""Loggers of a run besides metrics.csv and samples/: TensorBoard and Weights & Biases."""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError

log = logging.getLogger(__name__)


class Logger(Protocol):
    """The interface of a logger."""

    name: str

    def row(self, row: Mapping[str, float]) -> None:
        """Log a row of metrics.csv."""

    def picture(self, name: str, image: Image, step: int) -> None:
        """Log the image of a milestone."""

    def close(self) -> None:
        """Close the logger."""


class Loggers:
    """All loggers of a run. If one fails, a warning is logged once and the run continues without it."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    def row(self, row: Mapping[str, float]) -> None:
        """Log a row of metrics.csv."""
        self._each(lambda logger: logger.row(row))

    def picture(self, name: str, image: Image, step: int) -> None:
        """Log the image of a milestone."""
        self._each(lambda logger: logger.picture(name, image, step))

    def close(self) -> None:
        """Close all loggers."""
        self._each(lambda logger: logger.close())

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for logger in [*self.loggers]:
            try:
                tell(logger)
            except Exception as error:  # full disks, lost networks, others' bugs
                _say_lost(logger.name, error)
                self.loggers.remove(logger)


def check_loggers(config: TrainConfig) -> None:
    """Raise `UserError` if the package of a logger is missing or it would prompt for input."""
    for name in config.loggers:
        if find_spec(name) is None:
            raise UserError(f"logger={name}: needs {name}; pip install 'ddpm-cli[log]'")
    if "wandb" in config.loggers:
        from ddpm_cli.tracking.wandb import check_login

        check_login()


def open_loggers(config: TrainConfig, folder: Path, step: int) -> Loggers:
    """Return the loggers that the config names besides csv, for a run in `folder` that continues after `step`."""
    opened = []
    for name in config.loggers:
        try:
            opened.append(_opened(name, config, folder, step))
        except Exception as error:
            _say_lost(name, error)
    return Loggers(opened)


def log_evaluation(record: Mapping[str, Any], run: Path) -> None:
    """Send a line of evaluations.jsonl to the loggers that `run` has used. Failures are logged."""
    for name in ("tensorboard", "wandb"):
        if (run / name).is_dir() and not (run / name).is_symlink():
            try:
                _add_evaluation(name, record, run)
            except Exception as error:
                log.warning("%s: did not receive this evaluation (%s)", run / name, _error_text(error))


def _opened(name: str, config: TrainConfig, folder: Path, step: int) -> Logger:
    if name == "tensorboard":
        from ddpm_cli.tracking.tensorboard import TensorBoard

        return TensorBoard(config, folder, step)
    from ddpm_cli.tracking.wandb import Wandb

    return Wandb(config, folder, step)


def _add_evaluation(name: str, record: Mapping[str, Any], run: Path) -> None:
    if name == "tensorboard":
        from ddpm_cli.tracking import tensorboard as tensorboard_logger

        tensorboard_logger.add_evaluation(record, run)
    else:
        from ddpm_cli.tracking import wandb as wandb_logger

        wandb_logger.add_evaluation(record, run)


def _say_lost(name: str, error: Exception) -> None:
    log.warning("logger=%s: failed; the run continues without it (%s)", name, _error_text(error))


def _error_text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
