"""Find run folders and read them into dataclasses. Missing and damaged files are treated as empty."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from ddpm_cli.checkpoints.notes import Change, current_overrides, read_changes
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.errors import UserError
from ddpm_cli.sweeps.jobs_csv import jobs_of

log = logging.getLogger(__name__)

MAX_CONFIG_DEPTH = 8
MAX_CONFIG_ITEMS = 1000
MAX_RUNS = 2000
MAX_METRIC_NAME = 40  # characters
FINAL_LOSS_SHARE = 10
"""The final loss is the mean of the last 1/FINAL_LOSS_SHARE of the rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of metrics.csv."""

    step: int
    epoch: float
    images: float
    loss: float  # not finite if all steps of this row were skipped
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """Last evaluation of a metric. Two scores are comparable only if their `settings` are equal."""

    value: float
    interval: tuple[float, float] | None
    step: int | None
    settings: dict[str, str]


@dataclass(frozen=True)
class Run:
    """Content of a run folder."""

    folder: Path
    name: str
    settings: dict[str, Any]  # by dotted key; the option of a config group has the key `schedule`, not `schedule.name`
    overrides: list[str]  # with those of `changes`
    rows: list[Row]
    scores: dict[str, Score]
    grids: dict[int, Path]  # sample grids by step, in ascending order
    film: Path | None
    pruned: bool = False  # ended early, as a bad run of a sweep
    changes: Sequence[Change] = ()  # on resume

    @property
    def steps(self) -> int:
        """Step of the last row, or 0 if there are no rows."""
        return self.rows[-1].step if self.rows else 0

    @property
    def seconds(self) -> float | None:
        """Training time in seconds, or None if there are no rows."""
        return self.rows[-1].seconds if self.rows else None

    @cached_property
    def images_per_second(self) -> float | None:
        """Median of the finite throughputs, or None if there are none."""
        speeds = [row.images_per_second for row in self.rows if math.isfinite(row.images_per_second)]
        return median(speeds) if speeds else None

    @cached_property
    def planned(self) -> int | None:
        """Planned number of steps, or None if unknown. Epochs after the last row are converted to steps."""
        steps, epochs, batch = (self.settings.get(f"train.{key}") for key in ("steps", "epochs", "batch_size"))
        if isinstance(steps, int):
            return steps
        if isinstance(epochs, int | float) and isinstance(batch, int) and batch > 0 and self.rows:
            last = self.rows[-1]
            left = (epochs - last.epoch) * last.images / last.epoch / batch if last.epoch > 0 else math.nan
            return last.step + math.ceil(round(left, 3)) if math.isfinite(left) else None  # rows have only eight digits
        return None

    @cached_property
    def loss(self) -> float | None:
        """Mean loss of the last tenth of the rows, NaN if the last loss is not finite, or None if there are no rows."""
        if not self.rows:
            return None
        last = [row.loss for row in self.rows[-math.ceil(len(self.rows) / FINAL_LOSS_SHARE) :]]
        if not math.isfinite(last[-1]):
            return math.nan
        finite = [loss for loss in last if math.isfinite(loss)]
        return sum(finite) / len(finite)


def find_runs(folders: Sequence[str]) -> list[Run]:
    """Return the runs at any depth in `folders`, without duplicates. Names are paths relative to the common folder.

    Raise `UserError` if a folder is missing, unreadable or contains no run, or if there are more than `MAX_RUNS` runs.
    """
    found: dict[Path, Path] = {}  # resolved path -> path as given
    for name in folders:
        top = Path(name).expanduser()
        try:
            if not top.is_dir():
                raise UserError(f"{name}: no such folder; name a run folder or a folder that contains runs")
            empty = True
            for folder in run_folders(top):
                empty = False
                found.setdefault(folder.resolve(), folder)
                if len(found) > MAX_RUNS:
                    raise UserError(f"{name}: more than {MAX_RUNS} runs; name folders with fewer runs")
        except (OSError, ValueError) as error:  # a name that is too long or contains a null byte
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{name}: cannot be read ({reason}); name another folder") from error
        if empty:
            raise UserError(
                f"{name}: contains no run; a run folder of ddpm-train has .hydra/config.yaml and metrics.csv"
            )
    common = os.path.commonpath(list(found)) if len(found) > 1 else next(iter(found)).parent
    pruned = _pruned_jobs({resolved.parent for resolved in found})
    return [read_run(folder, str(path.relative_to(common)), path in pruned) for path, folder in found.items()]


def _pruned_jobs(sweeps: Iterable[Path]) -> set[Path]:
    """Return the run folders of the jobs of sweeps that were ended early."""
    return {sweep / str(job.job) for sweep in sweeps for job in jobs_of(sweep).values() if job.status == "pruned"}


def run_folders(top: Path) -> Iterator[Path]:
    """Yield the run folders at or below `top`, sorted by name. Symbolic links are not followed."""
    for directory, subdirectories, _ in os.walk(top):
        folder = Path(directory)
        if RunFolder(folder).is_run():
            subdirectories.clear()  # a run contains no other runs
            yield folder
        subdirectories.sort(key=_by_job_number)


def _by_job_number(name: str) -> tuple[int, int, str]:
    """Return a sort key that orders the job numbers of a sweep (0, 1, 10) numerically and before all other names."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() and len(name) < 10 else (1, 0, name)


def read_run(folder: Path, name: str, pruned: bool = False) -> Run:
    """Return the run in `folder`."""
    run = RunFolder(folder)
    changes = read_changes(run)
    settings = _flatten(run.read_config())
    if not settings:
        log.warning("%s: no settings found in .hydra/config.yaml", folder)
    return Run(
        folder,
        name,
        settings,
        current_overrides(run.read_overrides(), changes),
        _metrics_rows(run),
        _scores(run),
        run.grids_by_step(),
        run.film if run.film.is_file() else None,
        pruned,
        changes,
    )


def _flatten(config: Any) -> dict[str, Any]:
    """Return the settings of a nested config by dotted key, or {} if it is not a dict or has too many items.

    The limits are needed because YAML aliases can repeat nodes exponentially.
    """
    if not isinstance(config, dict):
        return {}
    items = list(islice(_config_items(config, "", MAX_CONFIG_DEPTH), MAX_CONFIG_ITEMS + 1))
    if len(items) > MAX_CONFIG_ITEMS:
        return {}
    return {key.removesuffix(".name"): value for key, value in items if _is_setting(value)}


def _config_items(tree: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict) and depth > 0:
            yield from _config_items(value, f"{prefix}{key}.", depth - 1)


def _is_setting(value: object) -> bool:
    """Return True if `value` is a string, number, boolean, None or a flat list of these."""
    if isinstance(value, list):
        return not any(isinstance(item, list) for item in value) and all(map(_is_setting, value))
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _metrics_rows(run: RunFolder) -> list[Row]:
    """Return the valid rows of metrics.csv."""
    rows = []
    for row in run.read_metrics():
        try:
            numbers = [float(row[key]) for key in ("epoch", "images", "loss", "images_per_second", "seconds")]
            rows.append(Row(int(row["step"]), *numbers))
        except (KeyError, TypeError, ValueError):
            continue
    return rows


def _scores(run: RunFolder) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for evaluation in run.read_evaluations():
        metrics = _dict_at(evaluation, "metrics")
        for name, value in metrics.items():
            if _is_number(value) and len(name) <= MAX_METRIC_NAME and not name.endswith("_std"):
                scores.pop(name, None)  # keeps the metrics ordered by their last evaluation
                interval = _interval(evaluation, name)
                scores[name] = Score(value, interval, _step(evaluation), _score_settings(evaluation))
    return scores


def _dict_at(evaluation: Any, key: str) -> dict[str, Any]:
    """Return the dict at `key`, or {} if there is none."""
    value = evaluation.get(key) if isinstance(evaluation, dict) else None
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _interval(evaluation: dict[str, Any], name: str) -> tuple[float, float] | None:
    match _dict_at(evaluation, "intervals").get(name):
        case [low, high] if _is_number(low) and _is_number(high):
            return low, high
    return None


def _step(evaluation: dict[str, Any]) -> int | None:
    step = evaluation.get("step")
    return step if isinstance(step, int) else None


def _score_settings(evaluation: dict[str, Any]) -> dict[str, str]:
    keys = ("split", "n", "weights", "features", "reference", "nfe", "guidance_scale")
    settings = {key: evaluation.get(key) for key in keys}
    settings["sampler"] = _dict_at(evaluation, "sampler").get("name")
    return {key: str(value) for key, value in settings.items() if isinstance(value, str | int | float)}
