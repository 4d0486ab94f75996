"""The checkpoint file: valid ones are read; damaged, foreign and hostile ones are refused in one line."""

import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.checkpoints.checksum import MAX_PICKLE, append_checksum
from ddpm_cli.checkpoints.format import (
    FORMAT,
    TYPES,
    CorruptCheckpoint,
    check_matches,
    load_checkpoint,
    read_config,
    write_checkpoint,
)
from ddpm_cli.checkpoints.stored_config import to_stored
from ddpm_cli.errors import UserError
from tests.conftest import composed

STATE: dict[str, Any] = {key: kind() for key, kind in TYPES.items()} | {
    "step": 12,
    "phases": [[0, 8, 100]],
    "seconds": 3.5,
    "config": to_stored(composed()),
    "model": {"w": torch.arange(3.0)},
    "classes": ["cat", "dog"],
}


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "valid.pt", STATE)
    return tmp_path / "valid.pt"


def with_checksum(path: Path, content: Any) -> Path:
    """Write a file with a valid checksum, as a hostile author would."""
    torch.save(content, path)
    append_checksum(path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint("ckpt", path)
    assert f"ckpt={path}" in str(caught.value)
    assert "\n" not in str(caught.value)
    if "checksum" not in str(caught.value):
        with pytest.raises(type(caught.value), match=re.escape(str(caught.value))):
            read_config("ckpt", path)
    return str(caught.value)


def test_checkpoint_round_trip(valid: Path) -> None:
    state = load_checkpoint("ckpt", valid)
    assert state["step"] == 12
    assert state["config"].schedule == composed().schedule
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert torch.load(valid, weights_only=True)["classes"] == ["cat", "dog"]
    assert zipfile.ZipFile(valid).testzip() is None  # still a valid archive


def test_config_is_read_without_the_tensors(valid: Path) -> None:
    config = load_checkpoint("ckpt", valid)["config"]
    assert read_config("ckpt", valid) == config
    content = valid.read_bytes()
    at = content.index(torch.arange(3.0).numpy().tobytes())
    valid.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert read_config("ckpt", valid) == config
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint("ckpt", valid)
    at = content.index(b"batch_size")
    valid.write_bytes(content[:at] + b"X" + content[at + 1 :])  # which the archive's own checksum of an entry detects
    with pytest.raises(UserError, match="not a checkpoint"):
        read_config("ckpt", valid)


def test_flipped_bits_are_detected(valid: Path) -> None:
    content, rng = valid.read_bytes(), random.Random(0)
    places = [0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(100))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        valid.write_bytes(changed)
        with pytest.raises(CorruptCheckpoint):
            load_checkpoint("ckpt", valid)


def test_truncated_checkpoints_are_detected(valid: Path) -> None:
    content, rng = valid.read_bytes(), random.Random(0)
    for length in [0, 1, len(content) - 1, *(rng.randrange(len(content)) for _ in range(100))]:
        valid.write_bytes(content[:length])
        with pytest.raises(CorruptCheckpoint):
            load_checkpoint("ckpt", valid)


def test_crash_while_writing_keeps_the_old_checkpoint(valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", write_half)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(valid, {**STATE, "step": 13})
    assert load_checkpoint("ckpt", valid)["step"] == 12
    assert [file.name for file in valid.parent.iterdir()] == ["valid.pt"]


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/ddpm-cli-executed"),)


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(Hostile())], ids=["empty", "text", "pickle"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    assert "not a checkpoint" in refusal(tmp_path / "other.pt")
    assert not Path("/tmp/ddpm-cli-executed").exists()


COMPLETE = {**STATE, "format": FORMAT}
FOREIGN: dict[str, tuple[Any, str]] = {
    "code": ({**COMPLETE, "model": Hostile()}, "not a checkpoint"),
    "list": ([1, 2], "not a checkpoint"),
    "foreign": ({"state_dict": {}}, "not a checkpoint"),
    "newer": ({**COMPLETE, "format": FORMAT + 1}, f"format {FORMAT + 1}, but this version reads formats 5 to {FORMAT}"),
    "older": ({**COMPLETE, "format": 4}, f"format 4, but this version reads formats 5 to {FORMAT}"),
    "no config of its format": ({**COMPLETE, "format": 5, "config": {"train": 3}}, "not a checkpoint"),
    "partial": ({"format": FORMAT, "step": 1}, "classes, config, data, ema"),
    "invalid format": ({**COMPLETE, "format": torch.ones(2)}, "not a checkpoint"),
    "invalid step": ({**COMPLETE, "step": "abc"}, "invalid step"),
    "negative step": ({**COMPLETE, "step": -1}, "invalid"),
    "invalid classes": ({**COMPLETE, "classes": [1, 2]}, "invalid"),
    "surprise": ({**COMPLETE, "config": {**STATE["config"], "surprise": 1}}, "surprise"),
    "absurd": ({**COMPLETE, "config": {**STATE["config"], "device": ["cpu"]}}, "device"),
    "sparse": ({**COMPLETE, "model": {"w": torch.ones(2).to_sparse(), "x": {1, 2}}}, "not a checkpoint"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_invalid_contents_are_rejected(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    assert message in refusal(with_checksum(tmp_path / "foreign.pt", content))
    assert not Path("/tmp/ddpm-cli-executed").exists()


def test_nested_lists_do_not_exhaust_memory(tmp_path: Path) -> None:
    nested: list[Any] = []
    for _ in range(9):
        nested = [nested] * 1000  # a pickle stores each list once
    assert "not a checkpoint" in refusal(with_checksum(tmp_path / "nested.pt", {**COMPLETE, "losses": {"x": nested}}))


def rewritten(source: Path, change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """Write the archive with changed entries and a valid checksum."""
    path = source.with_name("rewritten.pt")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(*change(entry, old.read(entry)))
    append_checksum(path)
    return path


def test_compressed_entries_are_refused_before_they_are_unpacked(valid: Path) -> None:
    def bomb(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        entry.compress_type = zipfile.ZIP_DEFLATED
        return entry, content + bytes(10_000_000 * entry.filename.endswith("data/0"))

    assert "compressed" in refusal(rewritten(valid, bomb))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "valid/data/../../x", "valid\\data.pkl", "a/b/c"])
def test_unknown_archive_entries_are_rejected(valid: Path, name: str) -> None:
    def renamed(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        entry.filename = name if entry.filename.endswith("data/0") else entry.filename
        return entry, content

    assert "unexpected names" in refusal(rewritten(valid, renamed))


def test_oversized_pickle_is_rejected(valid: Path) -> None:
    def long(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        return entry, content + bytes(MAX_PICKLE * entry.filename.endswith(".pkl"))

    assert "too much data besides the tensors" in refusal(rewritten(valid, long))


def test_tensors_outside_the_file_are_rejected(valid: Path) -> None:
    """Check a pickle that declares a gigabyte for a storage of a few bytes. torch trusts the declared size."""

    def claims(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        return entry, content.replace(b"K\x03", b"J\x00\x00\x00\x10") if entry.filename.endswith(".pkl") else content

    state = None
    try:
        state = load_checkpoint("ckpt", rewritten(valid, claims))
    except UserError:
        return
    assert state["model"]["w"].numel() <= 3


def test_paths_in_a_checkpoint_are_ignored(tmp_path: Path) -> None:
    config = {
        **STATE["config"],
        "out": "/etc",
        "resume": "/etc",
        "dataset": {**STATE["config"]["dataset"], "root": "/"},
    }
    read = load_checkpoint("ckpt", with_checksum(tmp_path / "paths.pt", {**COMPLETE, "config": config}))["config"]
    assert (read.out, read.resume, read.dataset.root) == ("", None, None)


LIKE = {"model": {"w": torch.empty(3, device="meta")}}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": torch.zeros(4)}, "model.w is float32 (4,), not float32 (3,)"),
        ({"w": torch.zeros(3).half()}, "model.w is float16 (3,), not float32 (3,)"),
        ({"w": torch.tensor([1.0, float("nan"), 2])}, "model.w is not finite"),
        ({"w": torch.tensor([1.0, float("inf"), 2])}, "model.w is not finite"),
        ({"w": [1.0, 2.0, 3.0]}, "model.w is no tensor"),
        ({"w": torch.zeros(3).to_sparse()}, "model.w is no tensor"),
        ({"w": torch.zeros(3, device="meta")}, "model.w is no tensor"),
        ({"v": torch.zeros(3)}, "model has other keys"),
        ({}, "model has other keys"),
    ],
)
def test_weights_of_another_architecture_are_rejected(valid: Path, weights: Any, message: str) -> None:
    check_matches("ckpt", valid, {"model": {"w": torch.zeros(3)}}, LIKE, 12)
    with pytest.raises(UserError) as caught:
        check_matches("ckpt", valid, {"model": weights}, LIKE, 2**20)
    assert message in str(caught.value)


def test_weights_larger_than_the_file_are_refused(valid: Path) -> None:
    large = os.stat(valid).st_size  # noqa: PTH116
    expanded = {"model": {"w": torch.zeros(1).expand(large)}}
    with pytest.raises(UserError, match="larger inside than the file"):
        check_matches("ckpt", valid, expanded, {"model": {"w": torch.empty(large, device="meta")}}, large)
