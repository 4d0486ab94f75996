"""Logging to Weights & Biases: online, or with WANDB_MODE=offline to wandb/ in the run folder."""

import logging
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import wandb
from PIL.Image import Image

from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError
from ddpm_cli.files import write

log = logging.getLogger(__name__)

PROJECT = "ddpm-cli"
ID = Path("wandb", "id.txt")
"""File in a run folder with the id of the run at wandb."""


class Wandb:
    """The logger of a run in `folder`; a resumed run continues the same run at wandb."""

    name = "wandb"

    def __init__(self, config: TrainConfig, folder: Path, step: int) -> None:
        own = id_of(folder) or _new_id(folder)
        self.run = _begin(
            folder, own, id=own, resume="allow", job_type="train", name=folder.name, config=asdict(config)
        )
        if self.run.url:
            log.info("wandb     %s", self.run.url)

    def row(self, row: Mapping[str, float]) -> None:
        """Log the numbers of a row of metrics.csv; wandb ignores steps that it already has."""
        self.run.log({f"train/{key}": value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    def picture(self, name: str, image: Image, step: int) -> None:
        """Log a gray or colour image."""
        self.run.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Wait until wandb has everything."""
        self.run.finish()


def add_evaluation(record: Mapping[str, Any], run: Path) -> None:
    """The metrics of a line of evaluations.jsonl, as a run of wandb's in the group of the run that they judge.

    It is a separate run, because wandb lets one process at a time write to a run, which may still be training.
    """
    about = {key: value for key, value in record.items() if key != "metrics"}
    metrics = {f"evaluation/{name}": value for name, value in record["metrics"].items()}
    with _begin(run, id_of(run), job_type="evaluation", name=f"{run.name} evaluation", config=about) as its:
        its.log(metrics, step=record["step"])


def id_of(run: Path) -> str | None:
    """Return the content of wandb/id.txt if it is a valid id."""
    file = run / ID
    text = file.read_text(errors="replace")[:100].strip() if file.is_file() else ""
    return text if re.fullmatch("[0-9a-z]{1,64}", text) else None


def check_login() -> None:
    """Raise `UserError` if wandb would prompt for an API key."""
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode == "online" and not wandb.login(verify=False, prompt=False):
        raise UserError("logger=wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")


def _new_id(folder: Path) -> str:
    new = uuid.uuid4().hex[:16]  # draws on no generator that a run draws on
    (folder / ID).parent.mkdir(exist_ok=True)
    write(folder / ID, f"{new}\n".encode())
    return new


def _begin(folder: Path, group: str | None, **more: Any) -> wandb.Run:
    check_login()
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    quiet = wandb.Settings(silent=True, console="off")
    return wandb.init(dir=folder.absolute(), project=project, group=group, settings=quiet, **more)
