"""Write run folders in the format described in the README."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

COLUMNS = "step,images,epoch,loss,lr,grad_norm,skipped,images_per_second,seconds"


def a_run(
    folder: Path,
    *overrides: str,
    losses: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
    scores: Mapping[str, float] | None = None,
    milestones: Sequence[int] = (),
    film: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run folder: 40 planned steps, batches of 8 images and a row every 10 steps. Return the folder."""
    tree: dict[str, Any] = {
        "dataset": {"name": "digits", "root": None, "image_size": 8},
        "schedule": {"name": "linear", "timesteps": 100, "rescale": True},
        "loss": {"name": "l2"},
        "train": {"steps": 40, "epochs": None, "batch_size": 8, "lr": 1e-3, "betas": [0.9, 0.999]},
        "resume": None,
        "out": str(folder),
    }
    for override in overrides:
        _apply_override(tree, override)
    tree.update(config or {})
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    rows = [f"{10 * i},{80 * i},{0.1 * i},{loss},0.001,1,0,{100 + i},{2.5 * i}" for i, loss in enumerate(losses, 1)]
    (folder / "metrics.csv").write_text("\n".join([COLUMNS, *rows, ""]))
    if scores:
        evaluate(folder, **scores)
    for step in milestones:
        paint(folder / f"samples/step_{step:08d}.png", np.full((16, 16), step % 256))
    if film:
        paint_film(folder / "samples/film.gif", [np.full((16, 16), 60 * i) for i in range(5)])
    return folder


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, value = override.split("=", 1)
    if isinstance(tree.get(key), dict):
        tree[key]["name"] = value
        return
    *groups, last = key.split(".")
    for group in groups:
        tree = tree[group]
    tree[last] = yaml.safe_load(value)


def evaluate(folder: Path, fields: Mapping[str, Any] | None = None, **metrics: float) -> None:
    """Append a line to evaluations.jsonl. `fields` are added to the line or replace its fields."""
    line = {"step": 40, "split": "test", "n": 100, "weights": "ema", "sampler": {"name": "ddim", "steps": 10}}
    with (folder / "evaluations.jsonl").open("a") as stream:
        stream.write(json.dumps({**line, "metrics": metrics, **(fields or {})}) + "\n")


def paint(path: Path, pixels: np.ndarray) -> None:
    """Write a picture from (H, W) or (H, W, 3) pixels in 0..255."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def paint_film(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write a GIF from (H, W) frames. Each frame lasts 100 ms."""
    path.parent.mkdir(exist_ok=True)
    first, *others = [Image.fromarray(frame.astype(np.uint8)) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=100, loop=0)
