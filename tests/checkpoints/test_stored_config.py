"""The config in a checkpoint: it is read strictly and contains no paths."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ddpm_cli.checkpoints.stored_config import from_stored, to_stored, train_config, with_noted_paths
from ddpm_cli.config import TrainConfig
from ddpm_cli.errors import UserError
from tests.conftest import composed


def test_stored_config_round_trip() -> None:
    config = composed("experiment=quickstart", "loss=huber", "dataset.image_size=[32,64]")
    assert train_config(asdict(config)) == config
    assert from_stored(to_stored(config)) == replace(config, out="")


def test_stored_config_contains_no_paths() -> None:
    config = composed("dataset=image_folder", "dataset.root=/my/pictures", "out=/my/run", "resume=/my/other")
    assert "/my" not in repr(to_stored(config))
    assert from_stored(to_stored(config)).dataset.root is None


def changed_config(**changes: Any) -> dict[str, Any]:
    return to_stored(composed()) | changes


STORED = to_stored(composed())


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"device": 5},
        {"schedule": {**STORED["schedule"], "name": "os.system"}},
        {"schedule": {**STORED["schedule"], "_target_": "os.system"}},
        {"schedule": {**STORED["schedule"], "timesteps": 10**30}},
        {"model": {**STORED["model"], "width": 2**40}},
        {"model": {**STORED["model"], "width": -8}},
        {"model": {**STORED["model"], "dropout": float("nan")}},
        {"train": {**STORED["train"], "milestone_every": "__import__('os')"}},
        {"dataset": {**STORED["dataset"], "image_size": [2**40, 8]}},
        {"dataset": "/etc/passwd"},
        {"loss": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_stored_config_is_read_strictly(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        from_stored(STORED | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, 3, [], {}, {key: value for key, value in STORED.items() if key != "loss"}])
def test_invalid_config_is_rejected(data: Any) -> None:
    with pytest.raises(UserError):
        from_stored(data)


def test_data_folder_is_read_from_the_run_folder(tmp_path: Path) -> None:
    config: TrainConfig = composed()
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    assert with_noted_paths(config, checkpoint) == config
    config_file = tmp_path / ".hydra" / "config.yaml"
    config_file.parent.mkdir()
    config_file.write_text("dataset: {root: /my/pictures}")
    assert with_noted_paths(config, checkpoint).dataset.root == "/my/pictures"
    for invalid in ("dataset: {root: [1]}", "dataset: 5", "", "a: [", "!!python/object/apply:os.system [ls]", "\0"):
        config_file.write_text(invalid)
        assert with_noted_paths(config, checkpoint).dataset.root is None
