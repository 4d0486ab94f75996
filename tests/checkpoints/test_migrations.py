"""Contents of checkpoints of older formats are brought to the current one."""

import copy
from typing import Any

import pytest

from ddpm_cli.checkpoints.migrations import FORMAT, migrate
from ddpm_cli.checkpoints.stored_config import from_stored, to_stored
from tests.conftest import composed


def of_format_5(*overrides: str) -> dict[str, Any]:
    config = to_stored(composed(*overrides))
    del config["train"]["deterministic"]
    config["model"].pop("gradient_checkpointing", None)
    del config["dataset"]["augment"]
    for key in ("variant", "time_activation"):
        config["model"].pop(key, None)
    return {"format": 5, "config": config, "step": 3}


@pytest.mark.parametrize("model", ["model=tiny", "model=ddpm_cifar10", "model=conv"])
def test_format_5(model: str) -> None:
    old = of_format_5(model, "dataset.image_size=32")
    before = copy.deepcopy(old)
    new = migrate(old)
    assert old == before
    assert (new["format"], new["step"]) == (FORMAT, 3)
    assert from_stored(new["config"]) == from_stored(to_stored(composed(model, "dataset.image_size=32")))


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["model=improved_cifar10", "dataset=cifar10"], "variant", "ddpm"),
        (["experiment=annotated"], "time_activation", "silu"),
    ],
)
def test_older_networks_stay_as_they_were(overrides: list[str], key: str, value: str) -> None:
    assert getattr(composed(*overrides).model, key) != value
    assert migrate(of_format_5(*overrides))["config"]["model"][key] == value


@pytest.mark.parametrize("config", [None, {}, {"train": {}}, {"train": {}, "model": 3}, {"train": [], "model": {}}])
def test_other_contents_are_refused(config: object) -> None:
    with pytest.raises(ValueError, match="no checkpoint of format 5"):
        migrate({"format": 5, "config": config})
