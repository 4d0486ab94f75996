"""metrics.csv and its plot, loss.png."""

import csv
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.files import NoRoom, no_room, write
from ddpm_cli.images.plots import save_loss_plot

COLUMNS = ["step", "images", "epoch", "loss", "lr", "grad_norm", "skipped", "images_per_second", "seconds"]


class Metrics:
    """The rows of metrics.csv, in memory and in the file. Rows after `last_step` are removed first."""

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        run = RunFolder(folder)
        self.path, self.plot = run.metrics, run.loss_plot
        rows = run.read_metrics(max_bytes=sys.maxsize)
        self.rows = [row for row in rows if _is_valid(row) and int(row["step"]) <= last_step]
        self._behind = True  # the file lacks some rows
        self.flush()

    def append(self, row: dict[str, float]) -> None:
        """Append a row with a number for each of `COLUMNS`. After `NoRoom`, `flush` tries again."""
        self.rows.append({column: f"{row[column]:.8g}" for column in COLUMNS})
        if self._behind:
            return
        try:
            with self.path.open("a", newline="") as stream:
                csv.DictWriter(stream, COLUMNS).writerow(self.rows[-1])
        except OSError as error:
            self._behind = True  # and may end in an incomplete row
            if no_room(error):
                raise NoRoom(self.path, len(self._text())) from error
            raise

    def flush(self) -> None:
        """Write all rows to the disk. Raise `NoRoom`."""
        if self._behind:
            write(self.path, self._text().encode())
            self._behind = False
        else:
            with self.path.open("rb+") as stream:
                os.fsync(stream.fileno())

    def draw(self, is_milestone: Callable[[int], bool]) -> None:
        """Draw loss.png again; the steps for which `is_milestone` is true are marked."""
        steps = [int(row["step"]) for row in self.rows]
        losses, rates = ([float(row[column]) for row in self.rows] for column in ("loss", "lr"))
        save_loss_plot(steps, losses, rates, self.epochs(), [*filter(is_milestone, steps)], self.plot)

    def epochs(self) -> dict[int, float]:
        """Return the mean loss of each finished epoch by the step of its last row.

        A row is weighted by its number of steps and belongs to the epoch in which it starts; rows without a finite
        loss are left out.
        """
        sums: dict[int, tuple[float, int, int]] = {}
        before, epoch = 0, 0
        for row in self.rows:
            step = int(row["step"])
            total, count, _ = sums.get(epoch, (0.0, 0, 0))
            if math.isfinite(loss := float(row["loss"])):
                sums[epoch] = (total + loss * (step - before), count + step - before, step)
            before, epoch = step, math.floor(float(row["epoch"]))
        return {last: total / count for at, (total, count, last) in sums.items() if at < epoch}

    def _text(self) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        return buffer.getvalue()


def _is_valid(row: dict[str, str]) -> bool:
    try:
        int(row["step"])
        for column in COLUMNS:
            float(row[column])
    except (KeyError, TypeError, ValueError):
        return False
    return True
