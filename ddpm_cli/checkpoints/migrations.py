"""Read checkpoints of older formats: each function brings the contents from one format to the next.

Formats are those of .pt and .safetensors files alike. What an older checkpoint does not say is written down as the
behaviour of the version that wrote it.
"""

from collections.abc import Callable, Mapping
from typing import Any

FORMAT = 8
"""The format that this version writes."""
State = Mapping[str, Any]


def to_6(state: State) -> dict[str, Any]:
    """Add `train.deterministic` and, for U-Nets, `model.gradient_checkpointing`."""
    config = state["config"]
    train, model = {**config["train"], "deterministic": False}, dict(config["model"])
    if model["name"] in ("unet", "ddpm_unet"):
        model["gradient_checkpointing"] = False
    return {**state, "format": 6, "config": {**config, "train": train, "model": model}}


def to_7(state: State) -> dict[str, Any]:
    """Add `phases`, as if nothing had changed on resume, and `plugins`, `init`, `evaluate` and sharded checkpoints."""
    train = {**state["config"]["train"], "stop_when": None, "patience": 3}
    evaluate = {"every": None, "metric": "fd_classifier", "n": 1000}
    checkpoint = {**state["config"]["checkpoint"], "sharded": False}
    new = {"train": train, "evaluate": evaluate, "checkpoint": checkpoint, "init": None, "init_weights": "ema"}
    phases = [[0, train["batch_size"], 0]]
    return {
        **state,
        "format": 7,
        "phases": phases,
        "plugins": {},
        "shards": {},
        "config": {**state["config"], **new},
    }


def to_8(state: State) -> dict[str, Any]:
    """Add `sigma_data`, `sampler.rho`, guidance, averages of several lengths and, for images, `dataset.augment`."""
    config = state["config"]
    dataset = dict(config["dataset"])
    if "flip" in dataset:
        dataset["augment"] = 0.0
    new = {
        "dataset": dataset,
        "sigma_data": "auto",
        "sampler": {**config["sampler"], "rho": 7.0},
        "guidance": {"interval": None, "rescale": 0.0},
        "train": {**config["train"], "ema_lengths": None},
        "checkpoint": {**config["checkpoint"], "keep_averages": 32},
    }
    return {**state, "format": 8, "averages": {}, "config": {**config, **new}}


MIGRATIONS: dict[int, Callable[[State], dict[str, Any]]] = {5: to_6, 6: to_7, 7: to_8}
OLDEST = min(MIGRATIONS)


def migrate(state: State) -> dict[str, Any]:
    """Return the contents of a checkpoint of format `OLDEST` or newer in the current format.

    Raise `ValueError` if they are not what a checkpoint of that format contains.
    """
    migrated = dict(state)
    try:
        while migrated["format"] < FORMAT:
            migrated = MIGRATIONS[migrated["format"]](migrated)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no checkpoint of format {state.get('format')}") from error
    return migrated
