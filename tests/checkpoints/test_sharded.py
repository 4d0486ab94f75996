"""Sharded checkpoints: shards are put together, damaged and hostile ones are refused, unused ones are removed."""

import json
import struct
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save

from ddpm_cli.checkpoints.checksum import sha256_of_file
from ddpm_cli.checkpoints.format import CorruptCheckpoint, load_checkpoint, read_config
from ddpm_cli.checkpoints.run_checkpoints import (
    find_checkpoint,
    keep_best,
    move_later_checkpoints,
    newest_valid_checkpoint,
    prune,
    save_checkpoint,
)
from ddpm_cli.checkpoints.sharded import Shards, shards_of, without_tensors
from ddpm_cli.errors import Failure, UserError
from ddpm_cli.files import NoRoom
from tests.checkpoints.test_format import STATE
from tests.conftest import Result, composed

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

WEIGHT, MOMENT = torch.arange(12.0).reshape(3, 4), torch.arange(3.0)
FLAT = {"model.w": WEIGHT, "ema.w": WEIGHT + 1, "optimizer.0.step": torch.tensor(2.0), "optimizer.0.exp_avg": MOMENT}


def written(folder: Path, step: int = 4) -> Path:
    """Write a sharded checkpoint with one shard to a run folder, and return its path."""
    shards = shards_of(folder / "checkpoints" / "last.pt", step)
    save(FLAT, storage_writer=HuggingFaceStorageWriter(str(shards), save_distributed=True), no_dist=True)
    return with_head(folder, shards, step)


def with_head(folder: Path, shards: Path, step: int) -> Path:
    checksums = {file.name: sha256_of_file(file) for file in shards.iterdir()}
    return save_checkpoint(folder, {**without_tensors(STATE), "step": step, "shards": checksums})


def refusal(path: Path) -> str:
    with pytest.raises(CorruptCheckpoint) as caught:
        load_checkpoint("ckpt", path)
    message = str(caught.value)
    assert message.startswith(f"ckpt={path}: damaged: ")
    assert "\n" not in message
    read_config("ckpt", path)  # the config itself can still be read
    return message


def test_shards_are_put_together(tmp_path: Path) -> None:
    written(tmp_path)
    state = load_checkpoint("ckpt", find_checkpoint("ckpt", str(tmp_path)))
    assert torch.equal(state["model"]["w"], WEIGHT)
    assert torch.equal(state["ema"]["w"], WEIGHT + 1)
    assert state["optimizer"].keys() == {0}
    assert torch.equal(state["optimizer"][0]["step"], torch.tensor(2.0))
    assert torch.equal(state["optimizer"][0]["exp_avg"], MOMENT)
    assert state["classes"] == ["cat", "dog"]


def _flip(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "is missing": Path.unlink,
    "does not match": _flip,
    "is not one of its files": lambda shard: shard.with_name("more.safetensors").touch(),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_shards_are_named(message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {**STATE, "step": 1})
    path = written(tmp_path)
    (shard,) = path.with_suffix(".shards").iterdir()
    DAMAGES[message](shard)
    assert message in refusal(path)
    assert shard.parent.name in refusal(path)
    assert newest_valid_checkpoint("resume", tmp_path)[1]["step"] == 1


def test_missing_folder_of_shards_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.with_suffix(".shards").rename(tmp_path / "elsewhere")
    assert "step_00000004.shards" in refusal(path)


def _changed_header(shard: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a shard again with another header, as a hostile author would."""
    content = shard.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    changed = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])


def _place(offsets: list[Any]) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        placed = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        placed["model.w"]["saved_offsets"] = offsets
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(placed)

    return change


def _rename(name: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name] = header.pop("model.w")
        header["__metadata__"].pop("DCP_SHARDING_INFO")

    return change


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "a tensor of exabytes": _place([2**40, 2**18]),
    "offsets that are no numbers": _place(["a", "b"]),
    "too few offsets": _place([]),
    "another name": _rename("code.w"),
    "a parameter that is no number": _rename("optimizer.x.w"),
    "a name without a dot": _rename("model"),
    "no sharding": lambda header: header["__metadata__"].update(DCP_SHARDING_INFO="{}"),
    "no JSON": lambda header: header["__metadata__"].update(DCP_SHARDING_INFO="["),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_shards_are_refused(case: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    (shard,) = path.with_suffix(".shards").iterdir()
    _changed_header(shard, HOSTILE[case])
    path = with_head(tmp_path, shard.parent, 4)  # its checksum is right
    assert "shards" in refusal(path)


@pytest.mark.parametrize(
    "shards",
    [
        {"../../secret.safetensors": "0" * 64},
        {"/etc/passwd": "0" * 64},
        {"a.pt": "0" * 64},
        {"a.safetensors": "0" * 63},
        {"a.safetensors": 0},
        {0: "0" * 64},
    ],
)
def test_other_names_of_shards_are_refused(shards: dict[Any, Any], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, {**without_tensors(STATE), "shards": shards})
    with pytest.raises(UserError, match="not a checkpoint of a run: invalid shards"):
        load_checkpoint("ckpt", path)


def test_shards_are_removed_with_their_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        written(tmp_path, step)
    keep_best(tmp_path, 2)
    prune(tmp_path, 1, lambda step: 0)
    best = tmp_path / "checkpoints" / "best.pt"
    left = {path.name for path in best.parent.iterdir()}
    assert left == {"best.pt", "last.pt"} | {f"step_0000000{i}.{kind}" for i in (2, 4) for kind in ("pt", "shards")}
    assert torch.equal(load_checkpoint("ckpt", best)["model"]["w"], WEIGHT)


def test_incomplete_and_later_shards_are_put_away(tmp_path: Path) -> None:
    for step in (1, 2):
        path = written(tmp_path, step)
    incomplete = path.with_name("step_00000003.shards")
    incomplete.mkdir()
    path.unlink()  # last.pt still names its shards
    move_later_checkpoints(tmp_path, 2)
    assert not incomplete.exists()
    assert load_checkpoint("ckpt", path.with_name("last.pt"))["step"] == 2
    written(tmp_path, 4)
    move_later_checkpoints(tmp_path, 1)
    (aside,) = path.parent.glob("superseded_*")
    assert {file.name for file in aside.iterdir()} == {"step_00000004.pt", "step_00000004.shards"}
    assert load_checkpoint("ckpt", aside / "step_00000004.pt")["step"] == 4


def test_damaged_best_checkpoint_does_not_stop_a_run(tmp_path: Path) -> None:
    """It is damaged where nobody looks for it: when other shards are removed."""
    for step in (1, 2, 3):
        path = written(tmp_path, step)
    path.with_name("best.pt").write_bytes(b"damaged")
    path.with_name("step_00000009.shards").mkdir()
    prune(tmp_path, 1, lambda step: 0)
    move_later_checkpoints(tmp_path, 3)
    left = {file.name for file in path.parent.iterdir()}
    assert left == {"best.pt", "last.pt", "step_00000003.pt", "step_00000003.shards"}


def test_link_in_the_place_of_shards_is_removed_and_not_followed(tmp_path: Path) -> None:
    path = written(tmp_path / "run", 3)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    path.with_name("step_00000009.shards").symlink_to(outside)
    move_later_checkpoints(tmp_path / "run", 3)
    assert not path.with_name("step_00000009.shards").is_symlink()
    assert (outside / "file").exists()


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError(28, "No space left on device"), NoRoom), (RuntimeError("no\nroom"), Failure)]
)
def test_shards_that_cannot_be_written_are_removed(error: Exception, kind: type[Failure], tmp_path: Path) -> None:
    writing: Future[Any] = Future()
    writing.set_exception(CheckpointException("write", {1: (error, None)}))  # type: ignore[dict-item]
    folder = tmp_path / "step_00000004.shards"
    folder.mkdir()
    with pytest.raises(kind) as caught:
        Shards(folder, writing, 100).checksums()
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_export_writes_one_file(tmp_path: Path, run: Callable[..., Result]) -> None:
    written(tmp_path / "run")
    result = run("export", f"ckpt={tmp_path}/run", "format=checkpoint", f"out={tmp_path}/whole")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "whole").rglob("*"))) == 3  # checkpoints/ with the step and last.pt
    state = load_checkpoint("ckpt", find_checkpoint("ckpt", str(tmp_path / "whole")))
    before = load_checkpoint("ckpt", find_checkpoint("ckpt", str(tmp_path / "run")))
    assert state["shards"] == {}
    assert torch.equal(state["optimizer"][0]["exp_avg"], MOMENT)
    assert torch.equal(state["model"]["w"], WEIGHT)
    assert [state[key] for key in ("step", "config", "classes")] == [
        before[key] for key in ("step", "config", "classes")
    ]
    result = run("export", f"ckpt={tmp_path}/run", "format=checkpoint", "weights=model", "out=no")
    assert (result.code, result.err) == (
        2,
        "ddpm-export: weights=model: has no effect with format=checkpoint, which has all of them; leave it out\n",
    )


def test_only_sharded_networks_have_sharded_checkpoints() -> None:
    config = composed("checkpoint.sharded=true", "distributed.strategy=fsdp")
    assert config.checkpoint.sharded
    with pytest.raises(UserError, match=r"checkpoint\.sharded=true: not with distributed\.strategy=ddp; use fsdp"):
        composed("checkpoint.sharded=true")
