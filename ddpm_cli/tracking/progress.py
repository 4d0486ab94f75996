"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.distributed import collectives

log = logging.getLogger(__name__)

TIMED_STEPS = 5  # after one step of warm-up: enough to estimate the duration of the run
HOURS = 2 * 3600  # seconds from which experiment=quickstart is suggested on a CPU
SLOWER = 3.0  # how many times slower than the first steps suggests that other programs use the cores
MIN_SECONDS = 5.0  # shorter laps say little about the speed
BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """The progress bar, the time spent in steps and the estimate of the time left.

    Args:
        step: number of steps done before this process started.
        steps: number of steps of the whole run.
        seconds: spent in steps since the run started, over all resumes.
        milestones: returns the number of milestones after a step.
        milestone_steps: estimate of the duration of a milestone in steps, used until one was timed.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        batch_size: int,
        seconds: float,
        on_cpu: bool,
        milestones: Callable[[int], int],
        milestone_steps: float,
    ) -> None:
        self.first_step, self.steps, self.batch_size, self.on_cpu = step, steps, batch_size, on_cpu
        self.seconds = seconds
        self.milestones, self.milestone_steps = milestones, milestone_steps
        self.bar = tqdm(
            total=steps, initial=step, bar_format=BAR, disable=not (collectives.is_rank_zero() and sys.stderr.isatty())
        )
        self._lap_step, self._lap_seconds = step, 0.0
        self._first_speed = 0.0  # steps per second
        self._warned = False
        self._milestone_seconds: list[float] = []
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

    def after_milestone(self) -> None:
        """Note the time since `pause`, which the milestone took, and start the clock again."""
        self._milestone_seconds.append(time.perf_counter() - self._since)
        self.go_on()

    def after_step(self, step: int, loss: Tensor) -> None:
        """Advance the bar; after the first few steps, wait for the device and log how long the run will take."""
        self.bar.update()
        match step - self.first_step:
            case 1:
                loss.item()
                self._first_done = time.perf_counter()
            case done if done == 1 + TIMED_STEPS:
                loss.item()
                self._first_speed = TIMED_STEPS / (time.perf_counter() - self._first_done)
                self._announce()

    def lap(self, step: int, loss: float) -> float:
        """Show the loss and the speed since the last lap; return the images per second."""
        self.pause()
        speed = (step - self._lap_step) / self._lap_seconds
        self._warn_if_slow(speed)
        self._lap_step, self._lap_seconds = step, 0.0
        images, left = speed * self.batch_size, duration(self._seconds_left(step, speed))
        self.bar.set_postfix_str(f"loss {loss:.4f}, {images:.0f} images/s, {left} left")
        level = logging.INFO if self.bar.disable else logging.DEBUG
        log.log(level, "step %d/%d  loss %.4f  %.0f images/s  %s left", step, self.steps, loss, images, left)
        return images

    def _seconds_left(self, step: int, speed: float) -> float:
        """Return the seconds that the steps and the milestones after `step` will take at `speed` steps per second."""
        timed = self._milestone_seconds
        each = sum(timed) / len(timed) if timed else self.milestone_steps / speed
        return (self.steps - step) / speed + self.milestones(step) * each

    def _announce(self) -> None:
        total = self._seconds_left(self.first_step, self._first_speed)
        log.info("%d steps will take about %s, milestones included", self.steps - self.first_step, duration(total))
        if self.on_cpu and total > HOURS:
            log.info("On a CPU, experiment=quickstart draws recognisable clothes after minutes.")

    def _warn_if_slow(self, speed: float) -> None:
        """Log once that steps have become slow on a CPU, whose cores other programs may use."""
        slow = speed * SLOWER < self._first_speed and self._lap_seconds >= MIN_SECONDS
        if self._warned or not (self.on_cpu and slow) or torch.get_num_threads() == 1:
            return
        self._warned = True
        log.warning("Steps are %.1f times slower than the first ones.", self._first_speed / speed)
        log.warning("If other programs use the cores, press Ctrl-C and resume with threads=1.")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
