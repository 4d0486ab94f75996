"""Candidates for shell completion. Hydra's scripts for bash, zsh and fish ask for them with `-sc query=<shell>`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from ddpm_cli.cli.app.help import groups_of, options_of
from ddpm_cli.cli.app.overrides import CHANGES, known_keys
from ddpm_cli.cli.app.shorthands import FLAGS, PATHS, RUN_KEYS, SHORT_KEYS
from ddpm_cli.config.commands import EXPORTS, FEATURES, IMPORTS, TASKS, known_metrics
from ddpm_cli.config.processes import STRATEGIES
from ddpm_cli.config.sampler import SPACINGS, THRESHOLDINGS
from ddpm_cli.config.train import LOGGERS, MEASURED, OPTIMIZERS, PRECISIONS, PREDICTIONS, REPORTS, VARIANCES

CHOICES: Mapping[str, Sequence[str]] = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "distributed.strategy": STRATEGIES,
    "evaluate.metric": MEASURED,
    "features": FEATURES,
    "init_weights": ("ema", "model"),
    "logger": LOGGERS,
    "precision": PRECISIONS,
    "prediction": PREDICTIONS,
    "sampler.spacing": SPACINGS,
    "sampler.thresholding": THRESHOLDINGS,
    "split": ("test", "train"),
    "task": TASKS,
    "train.lr_decay": ("constant", "cosine"),
    "train.on_disk_full": ("continue", "stop"),
    "train.optimizer": OPTIMIZERS,
    "train.precision": PRECISIONS,
    "train.report": REPORTS,
    "train.stop_when": MEASURED,
    "variance": VARIANCES,
    "weights": ("ema", "model"),
}
"""Values of keys that have a few. `format` depends on the command."""
MAX_PATHS = 200


def candidates(command: str, schema: type, line: str) -> list[str]:
    """Return the words that may stand for the last word of `line`, which starts with the name of the command."""
    word = line.rpartition(" ")[2]
    if word.startswith("-"):
        return sorted(flag for flag in FLAGS if flag.startswith(word) and flag.startswith("--"))
    key, equals, value = word.partition("=")
    if not equals:
        return _keys(command, schema, word)
    full = SHORT_KEYS.get(command, {}).get(key, key)
    if full in PATHS:
        return [f"{key}={path}" for path in _paths(full, value)]
    before, comma, last = value.rpartition(",")
    return [f"{key}={before}{comma}{one}" for one in _values(command, schema, full) if one.startswith(last)]


def _keys(command: str, schema: type, prefix: str) -> list[str]:
    """Return the keys with `prefix`, up to their next dot."""
    short = SHORT_KEYS.get(command, {})
    hidden = {"classes"} if "class" in short else set()
    known = {key for key in known_keys(schema) if not key.startswith(CHANGES.removesuffix("."))} - hidden
    names = [*groups_of(command), *known, *short]
    found = set()
    for name in names:
        if name.startswith(prefix):
            head, dot, _ = name[len(prefix) :].partition(".")
            section = any(other.startswith(f"{name}.") for other in known) and name not in groups_of(command)
            found.add(f"{prefix}{head}{dot}" if dot else f"{name}{'.' if section else '='}")
    return sorted(found)


def _values(command: str, schema: type, key: str) -> Iterable[str]:
    if key in groups_of(command):
        return options_of(key)
    if key == "format":
        return EXPORTS if command == "export" else IMPORTS
    if key == "metrics":
        return known_metrics()
    if any(bool in (known.hint, *get_args(known.hint)) for known in known_keys(schema).get(key, [])):
        return ("false", "true")
    return CHOICES.get(key, ())


def _paths(key: str, prefix: str) -> list[str]:
    """Return the files and folders that start with `prefix`, and `latest` where a run is meant."""
    folder, slash, name = prefix.rpartition("/")
    start = Path(f"{folder}{slash}").expanduser()
    found = ["latest"] if key in RUN_KEYS and "latest".startswith(prefix) else []
    try:
        entries = sorted(path for path in start.iterdir() if path.name.startswith(name))
    except OSError:
        return found
    shown = [path for path in entries if name.startswith(".") or not path.name.startswith(".")][:MAX_PATHS]
    return [*found, *(f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}" for path in shown)]
