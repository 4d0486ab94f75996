"""The training loop: steps, metrics, checkpoints and sample grids until the run ends."""

import logging
import math
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_cli.checkpoints.run_checkpoints import prune, save_checkpoint
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Stopped
from ddpm_cli.files import NoRoom
from ddpm_cli.images.png_gif import save_gif, save_png
from ddpm_cli.images.samples import picture
from ddpm_cli.sampling.film import evenly, frames, shown
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry, cycle_labels
from ddpm_cli.tracking.loggers import open_loggers
from ddpm_cli.tracking.metrics_csv import Metrics
from ddpm_cli.tracking.progress import Progress
from ddpm_cli.training.loss_monitor import LossMonitor
from ddpm_cli.training.signals import Signals
from ddpm_cli.training.trainer import Trainer

log = logging.getLogger(__name__)


class Loop:
    """Train and write to a run folder. Call `restore` first if the run is resumed, then `run` once.

    Each of several processes has a loop; all take the same steps, and rank 0 alone writes.
    """

    def __init__(self, trainer: Trainer, folder: Path, fingerprint: str) -> None:
        self.trainer = trainer
        self.folder = folder
        self.fingerprint = fingerprint
        self.losses = LossMonitor(trainer.config.train.max_bad_steps)
        self.seconds = 0.0  # spent in steps before this process started

    def state(self) -> dict[str, Any]:
        """Return the contents of a checkpoint."""
        losses = self.losses.state()
        return {
            **self.trainer.state(),
            "losses": losses,
            "seconds": self.seconds,
            "data": self.fingerprint,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the contents of a checkpoint."""
        self.trainer.restore(state)
        self.losses.restore(state["losses"])
        self.seconds = state["seconds"]

    def run(self, signals: Signals) -> float:
        """Train to the last step; return the last loss that was logged.

        Raises `Stopped` if `signals` ask, `NoRoom` for a full disk, `TrainingDiverged` if no loss is finite.
        """
        trainer, train = self.trainer, self.trainer.config.train
        on_cpu = trainer.device.type == "cpu"
        self.signals = signals
        self._poll_signals()
        if trainer.step == 0:  # so that there is always one to resume from, and a full disk is noticed now
            state = self.state()
            collectives.on_rank_zero(lambda: save_checkpoint(self.folder, state))
        self.saved_step = trainer.step
        self.progress = Progress(trainer.step, trainer.steps, train.batch_size, self.seconds, on_cpu)
        with ExitStack() as stack:
            stack.enter_context(closing(self.progress.bar))
            if collectives.is_rank_zero():
                self.metrics = Metrics(self.folder, trainer.step)
                self.loggers = open_loggers(trainer.config, self.folder, trainer.step)
                stack.enter_context(closing(self.loggers))
            if (
                trainer.step > 0
                and self._is_milestone()
                and collectives.on_rank_zero(lambda: not self._grid().exists())
            ):
                self._draw()  # the run was killed between writing a checkpoint and its grid
            return self._steps()

    def _steps(self) -> float:
        trainer, mean_loss = self.trainer, math.nan
        trainer.network.train()
        while trainer.step < trainer.steps:
            loss, grad_norm = trainer.train_step()
            self.losses.add(loss)
            self.progress.after_step(trainer.step, loss)
            self._poll_signals()
            milestone = self._is_milestone()
            if milestone or trainer.step % trainer.config.train.log_every == 0:  # the host waits for the device here
                mean_loss = self.losses.mean()
                row = self._row(mean_loss, grad_norm.item())
                self._allow_full_disk(self._note, row)
            if milestone or self.save or self.stop:
                self._allow_full_disk(self._save)
            self._raise_if_stopped()
            if milestone:
                self._allow_full_disk(self._draw)
        return mean_loss

    def _note(self, row: dict[str, float]) -> None:
        collectives.on_rank_zero(lambda: self.metrics.append(row))
        if collectives.is_rank_zero():
            self.loggers.row(row)

    def _is_milestone(self) -> bool:
        step = self.trainer.step
        return step == self.trainer.steps or self.trainer.config.train.is_milestone(step, len(self.trainer.table))

    def _poll_signals(self) -> None:
        """Set `stop` (the number of a signal, or 0) and `save` to what any rank was asked for, on all ranks alike."""
        asked = collectives.all_reduce_max(2 * (self.signals.stop or 0) + self.signals.save)
        self.stop, self.save = asked // 2, asked % 2 == 1
        if self.save:
            self.signals.save = False

    def _raise_if_stopped(self) -> None:
        """Raise `Stopped` if a signal asked for it and this step is saved."""
        if self.stop and self.saved_step == self.trainer.step:
            name = signal.Signals(self.stop).name
            raise Stopped(
                self.stop,
                f"{name}: stopped after step {self.trainer.step} of {self.trainer.steps}, which is saved; "
                f"ddpm-train resume={self.folder} goes on",
            )

    def _allow_full_disk(self, write: Callable[..., None], *what: Any) -> None:
        """Call `write`; with train.on_disk_full=continue, ignore a full disk unless this is the last chance to save."""
        try:
            write(*what)
        except NoRoom as error:
            last = self.trainer.step == self.trainer.steps or self.stop
            if last or self.trainer.config.train.on_disk_full == "stop":
                raise
            log.warning("%s; training goes on, and the next milestone tries again", error)

    def _save(self) -> None:
        """Write a checkpoint after flushing metrics.csv."""
        self.progress.pause()
        self.seconds = self.progress.seconds
        state = self.state()
        collectives.on_rank_zero(lambda: self._write(state))
        self.saved_step = self.trainer.step
        self.progress.go_on()

    def _write(self, state: dict[str, Any]) -> None:
        self.metrics.flush()
        path = save_checkpoint(self.folder, state)
        train, keep = self.trainer.config.train, self.trainer.config.checkpoint
        prune(self.folder, keep.keep_last, keep.window(len(self.trainer.table), train.batch_size))
        log.debug("checkpoint of step %d: %s", state["step"], path)

    def _draw(self) -> None:
        """Write the loss plot and a grid of samples of the averaged weights with fixed seeds; at the end a film too."""
        self.progress.pause()
        collectives.on_rank_zero(lambda: self.metrics.draw())
        film, grid = self._pictures(filmed=self.trainer.step == self.trainer.steps)
        collectives.on_rank_zero(lambda: self._show(film, grid))
        self.progress.go_on()

    def _show(self, film: list[Image], grid: Image) -> None:
        path, step = self._grid(), self.trainer.step
        path.parent.mkdir(exist_ok=True)
        if film:
            save_gif(film, path.with_name("film.gif"))  # before the grid, so that every last grid has a film
        save_png(grid, path)
        self.loggers.picture("samples", grid, step)
        log.info("milestone at step %d: %s", step, path)

    def _grid(self) -> Path:
        return self.folder / "samples" / f"step_{self.trainer.step:08d}.png"

    def _pictures(self, filmed: bool) -> tuple[list[Image], Image]:
        """Return the frames of the film, empty unless `filmed`, and the grid of samples of the averaged weights."""
        classes, count = self.trainer.classes, self.trainer.config.train.samples
        labels = cycle_labels(count, range(max(1, len(classes))))
        names = [classes[label] for label in labels] if classes else None
        moments, x = self._samples(labels, filmed)
        return [picture(some, names and names[: len(some)]) for some in moments], picture(x, names)

    def _samples(self, labels: Sequence[int], filmed: bool) -> tuple[list[Tensor], Tensor]:
        """Draw samples (n, C, ...) of the averaged weights, one for each of `labels`.

        Returns:
            The first samples at some steps of the sampler, if `filmed`, and all samples at its end.
        """
        train, generator = self.trainer.config.train, self.trainer.generator
        steps = len(generator.pairs())
        moments = evenly(steps, frames(generator.shape)) if filmed else []
        last = shown(generator.shape, len(labels))

        def draw(images: range) -> tuple[list[Tensor], Tensor]:
            x, seen = torch.empty(0), []
            for i, step in enumerate(generator.steps(train.seed, labels, images), start=1):
                x = step.x
                if i in moments:
                    seen.append(x[: max(0, last - images.start)].cpu())
                self._poll_signals()
                self._raise_if_stopped()
            return seen, x.cpu()

        made = [both for _, both in batches_with_oom_retry(len(labels), train.batch_size, draw)]
        films, examples = zip(*made, strict=True)
        return [torch.cat(parts) for parts in zip(*films, strict=True)], torch.cat(examples)

    def _row(self, loss: float, grad_norm: float) -> dict[str, float]:
        trainer = self.trainer
        speed = self.progress.lap(trainer.step, loss)
        images = trainer.step * trainer.config.train.batch_size
        return {
            "step": trainer.step,
            "images": images,
            "epoch": images / len(trainer.table),
            "loss": loss,
            "lr": trainer.lr,
            "grad_norm": grad_norm,
            "skipped": self.losses.skipped,
            "images_per_second": speed,
            "seconds": self.progress.seconds,
        }
