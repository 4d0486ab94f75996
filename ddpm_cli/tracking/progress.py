"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time

from torch import Tensor
from tqdm import tqdm

from ddpm_cli.distributed import collectives

log = logging.getLogger(__name__)

TIMED_STEPS = 5  # after one step of warm-up: enough to estimate the duration of the run
HOURS = 2 * 3600  # seconds from which experiment=quickstart is suggested on a CPU


class Progress:
    """The progress bar, the time spent in steps and the estimate of the duration.

    seconds: spent in steps since the run started, over all resumes.
    """

    def __init__(self, step: int, steps: int, batch_size: int, seconds: float, on_cpu: bool) -> None:
        self.first_step, self.steps, self.batch_size, self.on_cpu = step, steps, batch_size, on_cpu
        self.seconds = seconds
        self.bar = tqdm(
            total=steps, initial=step, unit="step", disable=not (collectives.is_rank_zero() and sys.stderr.isatty())
        )
        self._lap_step, self._lap_seconds = step, 0.0
        self.go_on()

    def pause(self) -> None:
        """Add the time since `go_on` to the time spent in steps. Call `go_on` before the next step."""
        elapsed = time.perf_counter() - self._since
        self.seconds += elapsed
        self._lap_seconds += elapsed
        self.go_on()

    def go_on(self) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def after_step(self, step: int, loss: Tensor) -> None:
        """Advance the bar; after the first few steps, wait for the device and log how long the run will take."""
        self.bar.update()
        match step - self.first_step:
            case 1:
                loss.item()
                self._first_done = time.perf_counter()
            case done if done == 1 + TIMED_STEPS:
                loss.item()
                self._announce((time.perf_counter() - self._first_done) / TIMED_STEPS)

    def lap(self, step: int, loss: float) -> float:
        """Show the loss and the speed since the last lap; return the images per second."""
        self.pause()
        speed = (step - self._lap_step) * self.batch_size / self._lap_seconds
        self._lap_step, self._lap_seconds = step, 0.0
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")
        level = logging.INFO if self.bar.disable else logging.DEBUG
        left = duration((self.steps - step) * self.batch_size / speed)
        log.log(level, "step %d/%d  loss %.4f  %.0f images/s  %s left", step, self.steps, loss, speed, left)
        return speed

    def _announce(self, seconds_per_step: float) -> None:
        total = (self.steps - self.first_step) * seconds_per_step
        log.info(
            "%d steps will take about %s at the speed of the first ones, and the milestones their own time",
            self.steps - self.first_step,
            duration(total),
        )
        if self.on_cpu and total > HOURS:
            log.info("on a CPU, experiment=quickstart gives good pictures of clothes in minutes")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
