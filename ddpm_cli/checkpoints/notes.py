"""The notes in .hydra/ of a run folder: its config, the overrides of its start, and what was changed on resume.

config.yaml is the config that the run has now, with the paths of its data. overrides.yaml stays as the run was started,
because a sweep recognizes its jobs by it; changes.yaml lists the overrides that were typed with resume=.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.checkpoints.stored_config import NOT_STORED, PATHS
from ddpm_cli.config import TrainConfig
from ddpm_cli.files import write

OF_A_COMMAND = ("out", "resume", "resume_data_changed")
"""Keys that belong to one command rather than to a run."""


@dataclass(frozen=True)
class Change:
    """Overrides that a run was resumed with after `step`."""

    step: int
    overrides: list[str]


def note_start(folder: Path, config: TrainConfig, overrides: Sequence[str]) -> None:
    """Write the notes of a new run. Raise `NoRoom`."""
    run = RunFolder(folder)
    _write_yaml(run.overrides, list(overrides))
    _write_yaml(run.config, _noted(config))


def note_resume(folder: Path, config: TrainConfig, step: int, overrides: Sequence[str]) -> None:
    """Write what `config` and `overrides` change for a run that is resumed after `step`. Raise `NoRoom`.

    Changes after an earlier step that the run goes back to are forgotten, as its checkpoint does not have them. What
    checkpoints do not store is kept as noted before.
    """
    run = RunFolder(folder)
    run.notes.mkdir(exist_ok=True)
    typed = [text for text in overrides if key_of(text) not in OF_A_COMMAND]
    # A checkpoint of step 0 is written again by each process that starts there, with the changes.
    changes = [change for change in read_changes(run) if change.step < max(1, step)]
    changes += [Change(step, typed)] if typed else []
    if changes or run.changes.exists():
        _write_yaml(run.changes, [asdict(change) for change in changes])
    before, keys = run.read_config(), {*map(key_of, typed)}
    kept = {key: before[key] for key in NOT_STORED if key in before} if isinstance(before, dict) else {}
    _write_yaml(run.config, _noted(config) | {key: kept[key] for key in kept.keys() - keys if _is_plain(kept[key])})


def read_changes(run: RunFolder) -> list[Change]:
    """Return the changes of a run on resume, oldest first. Invalid ones are skipped."""
    found = run.read_changes()
    return [Change(one["step"], one["overrides"]) for one in found if isinstance(one, dict) and _is_change(one)]


def current_overrides(overrides: Iterable[str], changes: Iterable[Change]) -> list[str]:
    """Return the overrides of a run with those of its changes, of which later ones replace earlier ones of a key."""
    merged = {key_of(text): text for text in overrides}
    for change in changes:
        merged |= {key_of(text): text for text in change.overrides}
    return list(merged.values())


def key_of(text: str) -> str:
    """Return the key of an override."""
    return text.partition("=")[0].lstrip("+~")


def _noted(config: TrainConfig) -> dict[str, Any]:
    """Return a config as a dict with absolute paths."""
    noted = asdict(config)
    for keys, key in [(noted["dataset"], key) for key in PATHS] + [(noted, "init")]:
        if keys.get(key) is not None:
            keys[key] = str(Path(keys[key]).expanduser().absolute())
    return noted


def _is_plain(value: object) -> bool:
    """Return whether a value is a scalar or a flat dict of scalars; others were not written by a run."""
    values = [*value.values()] if isinstance(value, dict) else [value]
    return all(one is None or isinstance(one, str | int | float) for one in values)


def _is_change(one: dict[Any, Any]) -> bool:
    overrides = one.get("overrides")
    texts = isinstance(overrides, list) and all(isinstance(text, str) for text in overrides)
    return texts and type(one.get("step")) is int


def _write_yaml(path: Path, content: object) -> None:
    write(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
