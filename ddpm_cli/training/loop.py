"""The training loop: steps, metrics, checkpoints and sample grids until the run ends."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.checkpoints.run_checkpoints import save_checkpoint
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.checkpoints.sharded import ShardWriter
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.devices import is_out_of_memory
from ddpm_cli.distributed.sharding import unshard_on_rank_zero
from ddpm_cli.distributed.turns import cpu_turn
from ddpm_cli.errors import Failure, Stopped
from ddpm_cli.evaluation.run_metrics import Measurement, MilestoneEvaluator, without_improvement
from ddpm_cli.files import NoRoom
from ddpm_cli.sampling.milestone import Milestone, draw_milestone
from ddpm_cli.shell import override
from ddpm_cli.tracking.progress import Progress
from ddpm_cli.tracking.run_writer import RunWriter
from ddpm_cli.training.loss_monitor import LossMonitor
from ddpm_cli.training.signals import Signals, name_of
from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Time between two moments at which several processes ask each other for signals."""
CALLS_PER_STEP = 3
"""Approximate number of forward passes that take as long as a training step with as many images."""


class Loop:
    """Train and write to a run folder, which this process must hold. Call `run` once and `close` at the end.

    Each of several processes has a loop; all take the same steps, and only rank 0 writes. The checkpoint of step 0 is
    written at once, so that there is always one to resume from, and a full disk is noticed early.

    Args:
        fingerprint: of the data, stored in checkpoints.
        signals: that stop the run or ask for a checkpoint.
        state: contents of the checkpoint that the trainer was restored from, if the run is resumed.
        on_milestone: called on rank 0 at each milestone. Training ends if it returns True.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        fingerprint: str,
        signals: Signals,
        state: dict[str, Any] | None = None,
        on_milestone: Callable[[Milestone], bool | None] | None = None,
    ) -> None:
        self.trainer = trainer
        self.folder = folder
        self.fingerprint = fingerprint
        self.signals = signals
        self.on_milestone = on_milestone
        self.evaluator = MilestoneEvaluator(trainer.config, trainer.generator)
        self.losses = LossMonitor(trainer.config.train.max_bad_steps)
        self.stop = 0  # number of the signal that asked any rank to stop
        self.save = False  # whether any rank was asked for a checkpoint
        if state is not None:
            self.losses.restore(state["losses"])
        self.seconds = 0.0 if state is None else state["seconds"]  # spent in steps, over all resumes
        self.saved_step = trainer.step
        self.shard_writer = ShardWriter(folder) if trainer.is_sharded and trainer.config.checkpoint.sharded else None
        self._polled, self._polled_step, self._next_poll = time.monotonic(), trainer.step, trainer.step
        if trainer.step == 0:
            first = self.state()
            collectives.on_rank_zero(lambda: save_checkpoint(folder, first))
        train, on_cpu = trainer.config.train, trainer.device.type == "cpu"
        self.progress = Progress(
            trainer.step,
            trainer.steps,
            train.batch_size,
            self.seconds,
            on_cpu,
            trainer.timeline.milestones_after,
            train.samples * trainer.generator.evaluations / (CALLS_PER_STEP * train.batch_size),
        )
        self.writer: RunWriter | None = None
        if collectives.is_rank_zero():
            self.writer = RunWriter(trainer.config, folder, trainer.step, trainer.timeline, background=not on_cpu)

    def close(self) -> None:
        """Close the progress bar and the loggers."""
        self.progress.bar.close()
        if self.writer is not None:
            self.writer.close()

    def state(self, sharded: bool = False) -> dict[str, Any]:
        """Return the contents of a checkpoint, see `Trainer.state`. All ranks must call it."""
        own = {"losses": self.losses.state(), "seconds": self.seconds, "data": self.fingerprint}
        return {**self.trainer.state(sharded), **own}

    def run(self) -> float:
        """Train to the last step; return the last loss that was logged.

        Raise `Stopped` for a signal, `NoRoom` for a full disk, `TrainingDiverged` if no loss is finite.
        """
        trainer = self.trainer
        self._poll_signals()
        self._draw_missing_grid()
        trainer.network.train()
        mean_loss = math.nan
        while trainer.step < trainer.steps:
            loss, grad_norm = self._train_step()
            self.losses.add(loss)
            self.progress.after_step(trainer.step, loss)
            milestone = self._is_milestone()
            if milestone or trainer.step >= self._next_poll:
                self._poll_signals()
            if milestone or trainer.step % trainer.config.train.log_every == 0:
                mean_loss = self.losses.mean()  # waits for the device
                self._allow_full_disk(self._log, mean_loss, grad_norm.item())
            if milestone or self.save or self.stop:
                self._allow_full_disk(self._wait_for_checkpoint)
                self._allow_full_disk(self._save)
                self.save = False
            self._raise_if_stopped()
            if milestone:
                self._allow_full_disk(self._draw)
                self._allow_full_disk(self._measure)
                if self._ends_early(mean_loss):
                    break
        return mean_loss

    def _measure(self) -> None:
        """Measure the samples of this milestone if that is due and has not been done."""
        step = self.trainer.step
        if not self.evaluator.is_due(step, self.trainer.timeline):
            return
        if collectives.on_rank_zero(lambda: any(row[0] == step for row in self._measurements())):
            return
        self.progress.pause()
        found = self.evaluator.measure(step, self.folder)
        self._wait_for_checkpoint()
        self._write(lambda writer: writer.measurement(step, found.value, found.error) if found else None)
        self.progress.after_milestone()

    def _measurements(self) -> list[list[float]]:
        """Return the step, the value and its error of all measurements on rank 0."""
        return [] if self.writer is None else self.writer.measurements()

    def _no_longer_improves(self) -> bool:
        train = self.trainer.config.train
        if train.stop_when is None:
            return False
        measured = [Measurement(int(step), value, error) for step, value, error in self._measurements()]
        if collectives.on_rank_zero(lambda: without_improvement(measured)) < train.patience:
            return False
        count = f"{train.patience} measurements" if train.patience > 1 else "the last measurement"
        log.info("%s has not improved in %s. To train the rest:", train.stop_when, count)
        log.info("  ddpm-train %s train.stop_when=null", override("resume", self.folder))
        return True

    def _ends_early(self, loss: float) -> bool:
        """Return whether training ends at this milestone, by train.stop_when or by `on_milestone`."""
        if self._no_longer_improves():
            return True
        on_milestone, trainer, step, run = self.on_milestone, self.trainer, self.trainer.step, RunFolder(self.folder)
        if on_milestone is None:
            return False
        self._wait_for_checkpoint()
        number = max(1, trainer.timeline.milestones_until(step))
        milestone = Milestone(number, step, trainer.steps, loss, self.folder, run.checkpoint(step), run.grid(step))
        return collectives.on_rank_zero(lambda: on_milestone(milestone) is True)

    def _draw_missing_grid(self) -> None:
        """Draw the grid of this step and measure it if the run was killed after its checkpoint and before that."""
        grid = RunFolder(self.folder).grid(self.trainer.step)
        if self.trainer.step > 0 and self._is_milestone():
            if collectives.on_rank_zero(lambda: not grid.exists()):
                self._draw()
            self._measure()

    def _is_milestone(self) -> bool:
        step = self.trainer.step
        return step == self.trainer.steps or self.trainer.timeline.is_milestone(step)

    def _train_step(self) -> tuple[Tensor, Tensor]:
        try:
            with cpu_turn(self.trainer.device):
                return self.trainer.train_step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            train = self.trainer.config.train
            raise Failure(
                f"train.batch_size={train.batch_size}: a step takes more memory than the device has free; try "
                f"train.accumulate={2 * train.accumulate}, a smaller batch or {self._gradient_checkpointing()}"
            ) from error

    def _gradient_checkpointing(self) -> str:
        off = getattr(self.trainer.config.model, "gradient_checkpointing", True) is False
        return "model.gradient_checkpointing=true" if off else "a smaller model"

    def _poll_signals(self) -> None:
        """Set `stop` and `save` to what any rank was asked for, the same on all ranks, and the step to ask again at.

        Several processes wait for each other here, so they ask every `POLL_SECONDS` or `log_every` steps only.
        """
        now = time.monotonic()
        seconds_per_step = (now - self._polled) / max(1, self.trainer.step - self._polled_step)
        own = [2 * (self.signals.stop or 0) + self.signals.save, math.ceil(1e6 * seconds_per_step)]
        asked, slowest = collectives.all_reduce_max(*own)
        self.stop, self.save = asked // 2, asked % 2 == 1
        if self.save:
            self.signals.save = False
        several = collectives.world_size() > 1
        steps = min(int(1e6 * POLL_SECONDS / max(1, slowest)), self.trainer.config.train.log_every) if several else 1
        self._polled, self._polled_step = now, self.trainer.step
        self._next_poll = self.trainer.step + max(1, steps)

    def _raise_if_stopped(self) -> None:
        """Raise `Stopped` if a signal asked for it and this step is saved."""
        if self.stop and self.saved_step == self.trainer.step:
            self._wait_for_checkpoint()
            raise Stopped(
                self.stop,
                f"{name_of(self.stop)}: stopped after step {self.trainer.step} of {self.trainer.steps}, which is "
                f"saved; ddpm-train {override('resume', self.folder)} continues",
            )

    def _allow_full_disk(self, write: Callable[..., None], *what: Any) -> None:
        """Call `write`; with train.on_disk_full=continue, ignore a full disk unless this is the last chance to save."""
        try:
            write(*what)
        except NoRoom as error:
            last = self.trainer.step == self.trainer.steps or self.stop
            if last or self.trainer.config.train.on_disk_full == "stop":
                raise
            log.warning("%s; training continues, and the next milestone tries again", error)

    def _write(self, work: Callable[[RunWriter], None]) -> None:
        """Call `work` on rank 0; all ranks raise its errors."""
        collectives.on_rank_zero(lambda: None if self.writer is None else work(self.writer))

    def _log(self, loss: float, grad_norm: float) -> None:
        row = self._row(loss, grad_norm)
        self._write(lambda writer: writer.row(row))

    def _save(self) -> None:
        """Write a checkpoint; a sharded one except at the end."""
        self.progress.pause()
        self.seconds = self.progress.seconds
        shard_writer = self.shard_writer if self.trainer.step < self.trainer.steps else None
        state = self.state(sharded=shard_writer is not None)
        shards = shard_writer.start(state) if shard_writer is not None else None
        averages = state["averages"] if self._is_milestone() else {}
        if averages and shards is not None:
            averages = self.trainer.averages.state(unshard_on_rank_zero)
        self._write(lambda writer: writer.checkpoint(state, shards, averages))
        self.saved_step = self.trainer.step
        if self.trainer.step == self.trainer.steps:
            self._wait_for_checkpoint()
        self.progress.go_on()

    def _wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that is being written in the background is complete. Raise `NoRoom`."""
        self._write(lambda writer: writer.wait())

    def _draw(self) -> None:
        """Write the loss plot and a grid of samples of the averaged weights; at the end also a film."""
        self.progress.pause()
        self._write(lambda writer: writer.loss_plot())
        trainer, at_end = self.trainer, self.trainer.step == self.trainer.steps
        drawn = draw_milestone(trainer.generator, trainer.classes, trainer.config.train, at_end, self._heed_signals)
        self._write(lambda writer: writer.milestone(self.trainer.step, *drawn) if drawn else None)
        self.progress.after_milestone()

    def _heed_signals(self) -> None:
        self._poll_signals()
        self._raise_if_stopped()

    def _row(self, loss: float, grad_norm: float) -> dict[str, float]:
        trainer = self.trainer
        speed = self.progress.lap(trainer.step, loss)
        return {
            "step": trainer.step,
            "images": trainer.timeline.images(trainer.step),
            "epoch": float(trainer.timeline.epochs(trainer.step)),
            "loss": loss,
            "lr": trainer.lr,
            "grad_norm": grad_norm,
            "skipped": self.losses.skipped,
            "images_per_second": speed,
            "seconds": self.progress.seconds,
        }
