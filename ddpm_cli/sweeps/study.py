"""The study of a search with Optuna: a file in the folder of the sweep, so that a stopped search goes on."""

import logging
import os
import sqlite3
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.shell import quoted

FILE = "study.db"
NAME = "sweep"
GROUP = "hydra/sweeper/sampler"


@dataclass(frozen=True)
class Study:
    """The study of a search.

    Attributes:
        seed: of Optuna's sampler; None if it has none.
    """

    seed: int | None


def study_of(hydra: Mapping[str, Any], resumed: bool) -> Study | None:
    """Return the study that is stored in the folder of a sweep, or None if Optuna does not choose its jobs.

    Args:
        hydra: the config of Hydra.
        resumed: whether sweep.resume was typed.

    Raise `UserError` if it cannot be stored or continued.
    """
    sweeper = hydra["sweeper"]
    if "n_trials" not in sweeper:
        return None
    own = sweeper["storage"] is not None
    if resumed and own:
        raise UserError(
            "hydra.sweeper.storage: not with sweep.resume=, which continues the study in the sweep's folder"
        )
    if resumed and hydra["runtime"]["choices"].get(GROUP) == "grid":
        raise UserError(f"{GROUP}=grid: such a search cannot be resumed; list the values and leave out hydra/sweeper")
    if own:
        return None
    if int(version("sqlalchemy").partition(".")[0]) > 1:
        raise UserError(
            f"hydra/sweeper=optuna: stores its study with SQLAlchemy 1.4, and {version('sqlalchemy')} is installed; "
            "pip install 'sqlalchemy<2'"
        )
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # about SQLAlchemy 2
    return Study(sweeper["sampler"].get("seed"))


def store_study(study: Study, folder: Path) -> list[str]:
    """Return the overrides for Optuna's sweeper that store a study in the folder of a sweep.

    The trials of a study that is there come first: Optuna gets their parameters in the same order, so each job keeps
    its number and folder. Finished jobs return their value again, and others are resumed or run again.
    """
    path = folder.absolute() / FILE
    earlier = _queue_earlier_trials(path) if path.exists() else 0
    overrides = [f"hydra.sweeper.storage={quoted(_url(path))}", f"hydra.sweeper.study_name={NAME}"]
    if study.seed is not None:  # another seed, because trials of the queue use no random numbers
        overrides.append(f"hydra.sweeper.sampler.seed={study.seed + earlier}")
    return overrides


def _queue_earlier_trials(path: Path) -> int:
    """Replace a study by a new one, in which all trials of the old one wait; return their number."""
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    try:
        old = optuna.load_study(NAME, _url(path))
    except KeyError:  # the sweep was stopped before its first trial
        return 0
    except Exception as error:
        if not isinstance(error.__cause__ or error.__context__ or error, sqlite3.Error):
            raise
        raise UserError(f"{path}: is not a study of Optuna; remove it to run all jobs that jobs.csv lacks") from error
    partial = path.with_name(f".{FILE}.tmp")
    partial.unlink(missing_ok=True)
    new = optuna.create_study(study_name=NAME, storage=_url(partial), directions=old.directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for trial in old.trials:
            new.enqueue_trial(trial.params or trial.system_attrs.get("fixed_params", {}))
    partial.replace(path)
    return len(old.trials)


def _url(path: Path) -> str:
    return f"sqlite:///{path}"
