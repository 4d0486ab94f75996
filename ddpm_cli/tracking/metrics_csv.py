"""metrics.csv and its plot, loss.png."""

import csv
import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.files import NoRoom, no_room, write
from ddpm_cli.images.plots import save_loss_plot

COLUMNS = ["step", "images", "epoch", "loss", "lr", "grad_norm", "skipped", "images_per_second", "seconds"]


class Metrics:
    """The rows of metrics.csv, in memory and in the file. Rows after `last_step` are removed first.

    Args:
        measured: names of further columns, which only rows that were passed to `measure` have.
    """

    def __init__(self, folder: Path, last_step: int = 0, measured: Sequence[str] = ()) -> None:
        run = RunFolder(folder)
        self.path, self.plot = run.metrics, run.loss_plot
        rows = run.read_metrics(max_bytes=sys.maxsize)
        self.rows = [row for row in rows if _is_valid(row) and int(row["step"]) <= last_step]
        kept = [key for row in self.rows[:1] for key in row if key not in COLUMNS]  # of a run before it was resumed
        self.columns = [*COLUMNS, *dict.fromkeys([*kept, *measured])]
        self._behind = True  # the file lacks some rows
        self.flush()

    def append(self, row: dict[str, float]) -> None:
        """Append a row with a number for each of `COLUMNS`. After `NoRoom`, `flush` tries again."""
        self.rows.append({column: f"{row[column]:.8g}" if column in row else "" for column in self.columns})
        if self._behind:
            return
        try:
            with self.path.open("a", newline="") as stream:
                csv.DictWriter(stream, self.columns).writerow(self.rows[-1])
        except OSError as error:
            self._behind = True  # and may end in an incomplete row
            if no_room(error):
                raise NoRoom(self.path, len(self._text())) from error
            raise

    def measure(self, values: Mapping[str, float]) -> None:
        """Add values to the last row and write the file again. Raise `NoRoom`."""
        self.rows[-1] |= {column: f"{value:.8g}" for column, value in values.items()}
        self._behind = True
        self.flush()

    def measured(self, *columns: str) -> list[list[float]]:
        """Return the step and the values of some columns of all rows that have them."""
        rows = [row for row in self.rows if all(row.get(column) for column in columns)]
        return [[float(row[column]) for column in ("step", *columns)] for row in rows]

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

        A row is weighted by its number of images and belongs to the epoch in which it starts; rows without a finite
        loss are left out.
        """
        sums: dict[int, tuple[float, float, int]] = {}
        before, epoch = 0.0, 0
        for row in self.rows:
            images = float(row["images"])
            total, count, _ = sums.get(epoch, (0.0, 0.0, 0))
            if math.isfinite(loss := float(row["loss"])):
                sums[epoch] = (total + loss * (images - before), count + images - before, int(row["step"]))
            before, epoch = images, math.floor(float(row["epoch"]))
        return {last: total / count for at, (total, count, last) in sums.items() if at < epoch}

    def _text(self) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self.columns, restval="", extrasaction="ignore")
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
