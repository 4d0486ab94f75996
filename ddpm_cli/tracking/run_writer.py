"""Write the files of a training run: metrics, checkpoints, sample grids and loggers. Only rank 0 has a writer."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_cli.averages.snapshots import Averages, rounded, save_snapshot, thin
from ddpm_cli.checkpoints.run_checkpoints import keep_best, prune, save_checkpoint
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.checkpoints.sharded import Shards, without_tensors
from ddpm_cli.config import TrainConfig
from ddpm_cli.images.png_gif import save_gif, save_png
from ddpm_cli.tracking.loggers import open_loggers
from ddpm_cli.tracking.metrics_csv import Metrics
from ddpm_cli.tracking.timeline import Timeline

log = logging.getLogger(__name__)


class RunWriter:
    """The writer of a run in `folder` that continues after `step`. All methods raise `NoRoom` if the disk is full.

    Args:
        timeline: tells which steps are milestones, and which checkpoints are kept.
        background: write checkpoints in a thread, while training continues.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, step: int, timeline: Timeline, background: bool = False
    ) -> None:
        self.config, self.run, self.timeline = config, RunFolder(folder), timeline
        self.background = background
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        metric = config.evaluate.metric
        self.measured = (metric, f"{metric}_error")
        self.metrics = Metrics(folder, step, self.measured if config.evaluate.every else ())
        self.loggers = open_loggers(config, folder, step)

    def row(self, row: dict[str, float]) -> None:
        """Append a row to metrics.csv and send it to the loggers."""
        self.metrics.append(row)
        self.loggers.row(row)

    def checkpoint(self, state: dict[str, Any], shards: Shards | None = None, averages: Averages | None = None) -> None:
        """Write a checkpoint after flushing metrics.csv, and remove old ones.

        In the background only one is written at a time. Its errors are raised by the next call or by `wait`.

        Args:
            shards: those being written of a sharded checkpoint, whose tensors are not among `state`.
            averages: to write a snapshot of, if any.
        """
        self.wait()
        self.metrics.flush()
        averages = rounded(averages or {})
        if shards is not None:
            state, averages = on_host((without_tensors(state), averages))
            self._writing = self._thread.submit(self._write_sharded, state, averages, shards)
        elif self.background:
            state, averages = on_host((state, averages))
            self._writing = self._thread.submit(self._write_checkpoint, state, averages)
        else:
            self._write_checkpoint(state, averages)

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raise its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write_sharded(self, state: dict[str, Any], averages: Averages, shards: Shards) -> None:
        self._write_checkpoint(state | {"shards": shards.checksums()}, averages)

    def _write_checkpoint(self, state: dict[str, Any], averages: Averages) -> None:
        keep, every = self.config.checkpoint, self.config.checkpoint.keep_interval
        if averages:  # before the checkpoint, so that a run which resumes from it has them
            save_snapshot(self.run.path, state["step"], self.config.train.ema_lengths or [], averages)
            thin(self.run.path, keep.keep_averages, self.timeline.milestones_until)
        path = save_checkpoint(self.run.path, state)
        prune(self.run.path, keep.keep_last, lambda step: self.timeline.intervals(every, step) if every else 0)
        log.debug("checkpoint of step %d: %s", state["step"], path)

    def loss_plot(self) -> None:
        """Draw loss.png."""
        self.metrics.draw(self.timeline.is_milestone)

    def milestone(self, step: int, film: Sequence[Image], grid: Image) -> None:
        """Write the sample grid of a milestone, and the film if it has frames."""
        path = self.run.grid(step)
        path.parent.mkdir(exist_ok=True)
        if film:
            save_gif(film, self.run.film)  # before the grid, so that the last grid always has a film beside it
        save_png(grid, path)
        self.loggers.picture("samples", grid, step)
        log.info("milestone at step %d: %s", step, path.relative_to(self.run.path))

    def measurement(self, step: int, value: float, error: float) -> None:
        """Write the metric of the samples of the last row's step, and keep its checkpoint if it is the best one."""
        self.metrics.measure(dict(zip(self.measured, (value, error), strict=True)))
        best, at, _ = min((found, at, error) for at, found, error in self.measurements())
        log.info("%s %.4g ± %.2g at step %d; best %.4g at step %d", self.measured[0], value, error, step, best, at)
        if at == step:
            keep_best(self.run.path, step)

    def measurements(self) -> list[list[float]]:
        """Return the step, the value and its error of all measurements."""
        return self.metrics.measured(*self.measured)

    def close(self) -> None:
        """Close the loggers. A checkpoint that is being written is completed."""
        self._thread.shutdown()
        self.loggers.close()


def on_host(value: Any) -> Any:
    """Return a copy of a tree of dicts, lists, tuples and tensors whose tensors are on the CPU.

    All tensors of a CUDA device are copied at once, and the device is not kept waiting for anything else.
    """
    copied = _copied(value)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


def _copied(value: Any) -> Any:
    match value:
        case Tensor():
            on_cuda = value.device.type == "cuda"
            host = torch.empty_like(value, device="cpu", pin_memory=on_cuda)
            return host.copy_(value.detach(), non_blocking=on_cuda)
        case dict():
            return {key: _copied(one) for key, one in value.items()}
        case list():
            return [_copied(one) for one in value]
        case tuple():
            return tuple(_copied(one) for one in value)
    return value
