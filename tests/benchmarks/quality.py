"""4. Time to quality: training minutes until the samples are as close to the test split as those of the annotated
recipe after 1, 2 and 6 epochs.
"""

import csv
import io
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.files import write
from ddpm_cli.tracking.timeline import new_timeline
from tests.benchmarks.distance import distance
from tests.benchmarks.measure import alternate, rate
from tests.benchmarks.quality_plot import save_quality_plot
from tests.benchmarks.report import Section, plain
from tests.benchmarks.setup import Setup
from tests.benchmarks.startup import TRAIN
from tests.benchmarks.step import WARM_UP, one_step
from tests.benchmarks.systems import REFERENCE, recipe, systems
from tests.benchmarks.systems.ours import composed
from tests.benchmarks.worker import Workers

EXAMPLES = 60_000
SOLVER = ("dpmpp_2m", 20)
ANNOTATED = "annotated"
EPOCHS = (1, 2, 6)
"""Epochs of the annotated recipe whose distances are the marks to reach."""


RECIPES = {
    ANNOTATED: ("experiment=annotated", "train.milestone_every=1epoch"),
    "quickstart": ("experiment=quickstart", "train.milestone_every=75"),
}
"""The overrides of ddpm-train for each recipe."""


@dataclass(frozen=True)
class Row:
    """A row of quality.csv.

    Attributes:
        minutes: training time, computed from the images/s of `rates`.
        plain_minutes: training time of the plain reference for as many images; only for the annotated recipe, which
            has the same network.
        distance: fd_classifier, with its 95% interval `low` to `high`.
        calls: network evaluations per image.
    """

    system: str
    step: int
    images: int
    minutes: float
    plain_minutes: float | None
    distance: float
    low: float
    high: float
    sampler: str
    calls: float
    samples: int


def run(setup: Setup, out: Path, names: Iterable[str]) -> Section:
    """Train and measure what is missing, and write quality.csv and quality.png into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    speeds = rates(setup, out / "rates.json")
    rows = read(out / "quality.csv")
    for name in names:
        train(RECIPES[name], out / name)
        for step, path in milestones(out / name):
            for sampler in _samplers(name, step):
                if not any((row.system, row.step, row.sampler) == (name, step, sampler) for row in rows):
                    rows.append(_measured(name, path, step, sampler, setup.n, speeds))
                    write(out / "quality.csv", text(rows).encode())
    marks = {epochs: row.distance for epochs, row in _marks(rows).items()}
    save_quality_plot(_curves(rows), marks, out / "quality.png")
    return section(rows)


def rates(setup: Setup, file: Path) -> dict[str, float]:
    """Return the images/s of the plain reference and of all recipes, measured in alternation, once per output folder.

    The long runs are trained one after the other. With these rates, other load on the machine has no effect
    on the result.
    """
    if not file.is_file():
        builds = {REFERENCE: systems(setup.data, setup.batch_size, extras=False)[REFERENCE]}
        builds |= {name: recipe(setup.data, typed) for name, typed in RECIPES.items()}
        with Workers() as workers:
            found = workers.started(builds, setup.threads)
            steps = {name: partial(worker.seconds, one_step) for name, worker in found.items()}
            seconds = alternate(steps, setup.rounds, WARM_UP, "rates")
        sizes = {REFERENCE: setup.batch_size} | {name: _batch_size(name) for name in RECIPES}
        speeds = {name: rate(sizes[name], taken).median for name, taken in seconds.items()}
        write(file, f"{json.dumps({'images_per_second': speeds, 'threads': setup.threads})}\n".encode())
    return dict(json.loads(file.read_text())["images_per_second"])


def train(typed: Sequence[str], folder: Path) -> None:
    """Train a run to its end, from its last checkpoint if there is one."""
    last = folder / "checkpoints" / "last.pt"
    if not last.is_file():
        kept = ("checkpoint.keep_last=null", "train.samples=4", "train.log_every=10", "device=cpu")
        subprocess.run([*TRAIN, *typed, *kept, f"out={folder}"], check=True)
    elif load_checkpoint("resume", last)["step"] < new_timeline(composed(*typed).train, EXAMPLES).steps:
        subprocess.run([*TRAIN, f"resume={folder}"], check=True)


def milestones(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run after step 0, sorted by step."""
    found = {int(path.stem.removeprefix("step_")): path for path in folder.glob("checkpoints/step_*.pt")}
    return sorted((step, path) for step, path in found.items() if step > 0)


def read(file: Path) -> list[Row]:
    """Return the rows of quality.csv; none if the file does not exist."""
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return [_row(line) for line in csv.DictReader(stream)]


def text(rows: Iterable[Row]) -> str:
    """Return the text of quality.csv, sorted by system, step and sampler."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(Row.__dataclass_fields__))
    writer.writeheader()
    ordered = sorted(rows, key=lambda row: (row.system, row.step, row.sampler))
    writer.writerows({key: _cell(value) for key, value in asdict(row).items()} for row in ordered)
    return stream.getvalue()


def best(rows: Iterable[Row]) -> list[Row]:
    """Return the row of the better sampler for each milestone, sorted by system and step."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        known = found.get((row.system, row.step))
        if known is None or row.distance < known.distance:
            found[row.system, row.step] = row
    return [found[key] for key in sorted(found)]


def section(rows: list[Row]) -> Section:
    """Return the times at which each system reaches the marks of the annotated recipe."""
    lines = []
    for epochs, mark in _marks(rows).items():
        for name in sorted({row.system for row in rows}):
            reached_row = next(
                (row for row in best(rows) if row.system == name and row.distance <= mark.distance), None
            )
            of_plain = mark.plain_minutes or mark.minutes
            reached = (
                ["not reached", ""]
                if reached_row is None
                else [plain(reached_row.minutes), f"{of_plain / reached_row.minutes:.1f}"]
            )
            lines.append([str(epochs), plain(mark.distance), plain(of_plain), name, *reached])
    columns = ["epochs", "their distance", "plain reference, minutes", "system", "its minutes", "times fewer"]
    notes = [
        "fd_classifier to the test split, with the averaged weights and the better of the run's sampler and 20 steps "
        "of DPM-Solver++. Minutes include training only.",
        "Minutes are images divided by the images/s of the system, measured in alternation. The annotated recipe was "
        "trained by ddpm-cli; the plain reference would need the minutes shown for as many images.",
        "Goal: the distance after 6 epochs in a hundredth of the minutes.",
    ]
    return Section("Time to quality", columns, lines, notes, {"rows": [asdict(row) for row in rows]})


def _batch_size(name: str) -> int:
    return int(composed(*RECIPES[name]).train.batch_size)


def _samplers(name: str, step: int) -> list[str]:
    """Return the samplers to measure; none for steps of the annotated recipe, with its 300 calls, that set no mark."""
    is_wanted = name != ANNOTATED or step in [_step_after(epochs, _batch_size(name)) for epochs in EPOCHS]
    return ["own", SOLVER[0]] if is_wanted else []


def _step_after(epochs: int, batch_size: int) -> int:
    return -(-epochs * EXAMPLES // batch_size)  # rounded up, like milestones


def _measured(name: str, path: Path, step: int, sampler: str, samples: int, speeds: Mapping[str, float]) -> Row:
    images = step * _batch_size(name)
    minutes, plain_minutes = images / speeds[name] / 60, images / speeds[REFERENCE] / 60
    found = distance(str(path), *((None, None) if sampler == "own" else SOLVER), samples)
    print(f"{name}, step {step}, {minutes:.1f} minutes, {sampler}: {found.value:.3f}", flush=True)
    return Row(
        name,
        step,
        images,
        minutes,
        plain_minutes if name == ANNOTATED else None,
        found.value,
        found.low,
        found.high,
        sampler,
        found.calls,
        samples,
    )


def _marks(rows: list[Row]) -> dict[int, Row]:
    """Return the rows of the annotated recipe after each of `EPOCHS`, as far as it is trained."""
    steps = {_step_after(epochs, _batch_size(ANNOTATED)): epochs for epochs in EPOCHS}
    return {steps[row.step]: row for row in best(rows) if row.system == ANNOTATED and row.step in steps}


def _curves(rows: list[Row]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return minutes, distance and interval by system. The annotated recipe also has a curve in reference minutes."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in best(rows):
        curves.setdefault(f"{row.system}, ddpm-cli", []).append((row.minutes, row.distance, row.low, row.high))
        if row.plain_minutes is not None:
            point = (row.plain_minutes, row.distance, row.low, row.high)
            curves.setdefault(f"{row.system}, plain reference", []).append(point)
    return curves


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _row(line: dict[str, str]) -> Row:
    plain_minutes = float(line["plain_minutes"]) if line["plain_minutes"] else None
    numbers = {key: float(line[key]) for key in ("minutes", "distance", "low", "high", "calls")}
    integers = {key: int(line[key]) for key in ("step", "images", "samples")}
    return Row(system=line["system"], sampler=line["sampler"], plain_minutes=plain_minutes, **numbers, **integers)
