"""Read run folders into dataclasses. If a file is missing or damaged, its part stays empty."""

import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from ddpm_cli.errors import UserError
from ddpm_cli.report.find_runs import run_folders
from ddpm_cli.untrusted_files import text_of

log = logging.getLogger(__name__)

MAX_NOTES = 65_536
MAX_METRICS = 64 * 2**20
MAX_EVALUATIONS = 16 * 2**20
"""Maximum bytes of each file, many times the size of those of a run."""
MAX_DEPTH = 8
MAX_ITEMS = 1000
MAX_RUNS = 500
MAX_NAME = 40  # length of the name of a metric
LAST_SHARE = 10
"""The final loss is the mean of the last tenth of the rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of metrics.csv."""

    step: int
    epoch: float
    images: float
    loss: float  # not finite if all steps of the row were skipped
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """The last evaluation of a metric. `how`: the settings that must be equal for two scores to be comparable."""

    value: float
    interval: tuple[float, float] | None
    step: int | None
    how: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run as read from its folder."""

    folder: Path
    name: str
    settings: dict[str, Any]  # by dotted key; the option of a group is under `schedule`, not `schedule.name`
    overrides: list[str]
    rows: list[Row]
    scores: dict[str, Score]
    grids: dict[int, Path]  # the sample grids of the milestones by step, in ascending order
    film: Path | None

    @property
    def steps(self) -> int:
        """Number of steps done according to the rows."""
        return self.rows[-1].step if self.rows else 0

    @property
    def seconds(self) -> float | None:
        """Training time in seconds."""
        return self.rows[-1].seconds if self.rows else None

    @cached_property
    def images_per_second(self) -> float | None:
        """Median throughput of the rows."""
        speeds = [row.images_per_second for row in self.rows if math.isfinite(row.images_per_second)]
        return median(speeds) if speeds else None

    @cached_property
    def planned(self) -> int | None:
        """Planned number of steps, or None if unknown. If it is given in epochs, it is computed from the last row."""
        steps, epochs, batch = (self.settings.get(f"train.{key}") for key in ("steps", "epochs", "batch_size"))
        if isinstance(steps, int):
            return steps
        if isinstance(epochs, int | float) and isinstance(batch, int) and batch > 0 and self.rows:
            last = self.rows[-1]
            planned = epochs * last.images / last.epoch / batch if last.epoch > 0 else math.nan
            return math.ceil(round(planned, 3)) if math.isfinite(planned) else None  # the rows have eight digits only
        return None

    @cached_property
    def loss(self) -> float | None:
        """Mean loss of the last tenth of the rows, or NaN if the last loss is not finite."""
        if not self.rows:
            return None
        last = [row.loss for row in self.rows[-math.ceil(len(self.rows) / LAST_SHARE) :]]
        if not math.isfinite(last[-1]):
            return math.nan
        finite = [loss for loss in last if math.isfinite(loss)]
        return sum(finite) / len(finite)


def find_runs(folders: Sequence[str]) -> list[Run]:
    """Return the runs in `folders`, at any depth and each once. Their names are paths relative to a common folder.

    Raises `UserError` if a folder is missing or contains no run, and if there are more runs than a page can show.
    """
    found: dict[Path, Path] = {}  # by resolved path
    for typed in folders:
        top = Path(typed).expanduser()
        try:
            if not top.is_dir():
                raise UserError(f"{typed}: no such folder; name a run folder, or a folder that contains some")
            empty = True
            for folder in run_folders(top):
                empty = False
                found.setdefault(folder.resolve(), folder)
                if len(found) > MAX_RUNS:
                    raise UserError(f"{typed}: more than {MAX_RUNS} runs; name folders with fewer")
        except (OSError, ValueError) as error:  # a name that is too long or contains a null byte
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{typed}: cannot be read ({reason}); name another folder") from error
        if empty:
            raise UserError(
                f"{typed}: contains no run; a run folder of ddpm-train has .hydra/config.yaml and metrics.csv"
            )
    if len(found) == 1:
        return [read_run(folder, place.name) for place, folder in found.items()]
    common = os.path.commonpath(list(found))
    return [read_run(folder, str(place.relative_to(common))) for place, folder in found.items()]


def read_run(folder: Path, name: str) -> Run:
    """Read the run in `folder`."""
    settings = _flat(_yaml(folder / ".hydra" / "config.yaml"))
    if not settings:
        log.warning("%s: no settings of a run in its .hydra/config.yaml", folder)
    overrides = _yaml(folder / ".hydra" / "overrides.yaml")
    film = folder / "samples" / "film.gif"
    return Run(
        folder,
        name,
        settings,
        [text for text in overrides if isinstance(text, str)] if isinstance(overrides, list) else [],
        _rows(folder / "metrics.csv"),
        _scores(folder / "evaluations.jsonl"),
        _grids(folder / "samples"),
        film if film.is_file() else None,
    )


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(text_of(path, MAX_NOTES))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        log.warning("%s: left out, because it is not valid YAML", path)
        return None


def _flat(config: Any) -> dict[str, Any]:
    """Flatten a nested config to dotted keys. Return nothing if it is not a config of limited size.

    YAML may contain anything, and its aliases may repeat parts exponentially.
    """
    items = list(islice(_items(config, "", MAX_DEPTH), MAX_ITEMS + 1)) if isinstance(config, dict) else []
    if len(items) > MAX_ITEMS:
        return {}
    return {key.removesuffix(".name"): value for key, value in items if _is_plain(value)}


def _items(tree: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict) and depth > 0:
            yield from _items(value, f"{prefix}{key}.", depth - 1)


def _is_plain(value: object) -> bool:
    """Return whether `value` is a possible setting: a string, number, boolean, null or a list of these."""
    if isinstance(value, list):
        return not any(isinstance(item, list) for item in value) and all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _rows(path: Path) -> list[Row]:
    """Return the complete rows. A crash may have truncated the last one."""
    rows = []
    whole = text_of(path, MAX_METRICS).rpartition("\n")[0]
    try:
        for row in csv.DictReader(io.StringIO(whole)):
            try:
                numbers = [float(row[key]) for key in ("epoch", "images", "loss", "images_per_second", "seconds")]
                rows.append(Row(int(row["step"]), *numbers))
            except (KeyError, TypeError, ValueError):
                continue
    except csv.Error:  # for example a huge field
        log.warning("%s: not readable after step %d", path, rows[-1].step if rows else 0)
    return rows


def _scores(path: Path) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for line in text_of(path, MAX_EVALUATIONS).splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # truncated by a crash
            continue
        metrics = _table(found, "metrics")
        for name, value in metrics.items():
            if _is_number(value) and len(name) <= MAX_NAME and not name.endswith("_std"):
                scores.pop(name, None)
                scores[name] = Score(value, _interval(found, name), _step(found), _how(found))
    return scores


def _table(found: Any, key: str) -> dict[str, Any]:
    table = found.get(key) if isinstance(found, dict) else None
    return table if isinstance(table, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _interval(found: dict[str, Any], name: str) -> tuple[float, float] | None:
    match _table(found, "intervals").get(name):
        case [low, high] if _is_number(low) and _is_number(high):
            return low, high
    return None


def _step(found: dict[str, Any]) -> int | None:
    step = found.get("step")
    return step if isinstance(step, int) else None


def _how(found: dict[str, Any]) -> dict[str, str]:
    settings = {key: found.get(key) for key in ("split", "n", "weights", "features", "nfe", "guidance_scale")}
    settings["sampler"] = _table(found, "sampler").get("name")
    return {key: str(value) for key, value in settings.items() if isinstance(value, str | int | float)}


def _grids(folder: Path) -> dict[int, Path]:
    found = {path.stem[5:]: path for path in folder.glob("step_*.png") if path.is_file()}
    steps = {int(digits): path for digits, path in found.items() if digits.isdecimal() and len(digits) < 16}
    return dict(sorted(steps.items()))
