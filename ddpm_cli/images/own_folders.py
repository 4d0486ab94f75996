"""Recognise the folders that the commands write.

Their pictures are grids, films and figures, which must not be counted among single images.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FIRST_SAMPLE = "00000.png"


class OwnFolder(NamedTuple):
    """A kind of folder that a command writes.

    Attributes:
        command: that writes it.
        marks: files and folders that are all in it.
        pictures: which are not single images.
        folders: with such pictures only.
    """

    command: str
    marks: tuple[str, ...]
    pictures: tuple[str, ...]
    folders: tuple[str, ...] = ()


SAMPLES = OwnFolder("ddpm-sample", ("grid.png", "images"), ("grid.png", "film.gif"))
KINDS = (
    SAMPLES,
    OwnFolder("ddpm-sample", ("grid.png", "points.csv"), ("grid.png", "film.gif", "reverse.png")),
    OwnFolder("ddpm-train", (".hydra", "train.log"), ("loss.png",), ("samples", "tensorboard", "wandb")),
    OwnFolder("ddpm-evaluate", ("evaluation.json",), ("samples.png", "neighbours.png", "nll.png")),
    OwnFolder("ddpm-evaluate -m", ("jobs.csv",), ("tradeoff.png", "averages.png")),
    OwnFolder("ddpm-forward", ("forward.png", "schedules.png"), ("forward.png", "schedules.png")),
    *(
        OwnFolder("ddpm-export", ("README.md", file), ("samples.png",))
        for file in ("model.safetensors", "model.onnx", "model_index.json")
    ),
)


def own_folder(place: Path, names: Iterable[str]) -> OwnFolder | None:
    """Return which kind of folder `place` is, given all names in it, or None if no command has written it."""
    present = {*names}
    for kind in KINDS:
        if present.issuperset(kind.marks) and (kind is not SAMPLES or (place / "images" / FIRST_SAMPLE).is_file()):
            return kind
    return None
