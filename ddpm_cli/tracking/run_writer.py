"""Write the files of a training run: metrics, checkpoints, sample grids and loggers. Only rank 0 has a writer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ddpm_cli.checkpoints.run_checkpoints import prune, save_checkpoint
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.config import TrainConfig
from ddpm_cli.images.png_gif import save_gif, save_png
from ddpm_cli.tracking.loggers import open_loggers
from ddpm_cli.tracking.metrics_csv import Metrics

log = logging.getLogger(__name__)


class RunWriter:
    """The writer of a run in `folder` that continues after `step`. All methods raise `NoRoom` if the disk is full.

    Args:
        examples: number of examples of the dataset, for lengths that are given in epochs.
    """

    def __init__(self, config: TrainConfig, folder: Path, step: int, examples: int) -> None:
        self.config, self.run, self.examples = config, RunFolder(folder), examples
        self.metrics = Metrics(folder, step)
        self.loggers = open_loggers(config, folder, step)

    def row(self, row: dict[str, float]) -> None:
        """Append a row to metrics.csv and send it to the loggers."""
        self.metrics.append(row)
        self.loggers.row(row)

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint after flushing metrics.csv, and remove old ones."""
        self.metrics.flush()
        path = save_checkpoint(self.run.path, state)
        keep = self.config.checkpoint
        prune(self.run.path, keep.keep_last, keep.window(self.examples, self.config.train.batch_size))
        log.debug("checkpoint of step %d: %s", state["step"], path)

    def loss_plot(self) -> None:
        """Draw loss.png."""
        self.metrics.draw(lambda step: self.config.train.is_milestone(step, self.examples))

    def milestone(self, step: int, film: Sequence[Image], grid: Image) -> None:
        """Write the sample grid of a milestone, and the film if it has frames."""
        path = self.run.grid(step)
        path.parent.mkdir(exist_ok=True)
        if film:
            save_gif(film, self.run.film)  # before the grid, so that the last grid always has a film beside it
        save_png(grid, path)
        self.loggers.picture("samples", grid, step)
        log.info("milestone at step %d: %s", step, path.relative_to(self.run.path))

    def close(self) -> None:
        """Close the loggers."""
        self.loggers.close()
