"""metrics.csv and the plot of it."""

import csv
import math
from pathlib import Path

from ddpm_cli.files import atomic
from ddpm_cli.plots import save_loss_plot

COLUMNS = ["step", "images", "epoch", "loss", "lr", "grad_norm", "images_per_second", "seconds"]


class Metrics:
    """The rows of a run, kept and appended to its metrics.csv; rows after `last_step` are dropped first."""

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        self.path = folder / "metrics.csv"
        self.plot = folder / "loss.png"
        self.rows: list[dict[str, str]] = []
        if self.path.is_file():
            with self.path.open(newline="") as stream:
                self.rows = [row for row in csv.DictReader(stream) if _upto(row, last_step)]
        with atomic(self.path) as partial, partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def append(self, row: dict[str, float]) -> None:
        """Add a row with a number for each of `COLUMNS`."""
        self.rows.append({column: f"{row[column]:.8g}" for column in COLUMNS})
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(self.rows[-1])

    def draw(self) -> None:
        """Redraw loss.png."""
        steps = [int(row["step"]) for row in self.rows]
        save_loss_plot(steps, [float(row["loss"]) for row in self.rows], self.epochs(), self.plot)

    def epochs(self) -> dict[int, float]:
        """The mean loss of each epoch that is over, by the step of its last row.

        A row counts as often as it has steps, for the epoch that it begins in.
        """
        sums: dict[int, tuple[float, int, int]] = {}
        before, epoch = 0, 0
        for row in self.rows:
            step = int(row["step"])
            total, count, _ = sums.get(epoch, (0.0, 0, 0))
            sums[epoch] = (total + float(row["loss"]) * (step - before), count + step - before, step)
            before, epoch = step, math.floor(float(row["epoch"]))
        return {last: total / count for at, (total, count, last) in sums.items() if at < epoch}


def _upto(row: dict[str, str], last_step: int) -> bool:
    """Whether a row is whole (a crash may cut the last one) and not after `last_step`."""
    return all(row.get(column) for column in COLUMNS) and int(row["step"]) <= last_step
