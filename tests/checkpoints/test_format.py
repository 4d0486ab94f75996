"""One file: what is written is read again; what is damaged, foreign or a trap is refused in a line."""

import os
import pickle
import random
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
    write_checkpoint,
)
from ddpm_cli.checkpoints.stored_config import to_stored
from ddpm_cli.errors import UserError
from tests.conftest import composed

STATE: dict[str, Any] = {key: kind() for key, kind in TYPES.items()} | {
    "step": 12,
    "seconds": 3.5,
    "config": to_stored(composed()),
    "model": {"w": torch.arange(3.0)},
    "classes": ["cat", "dog"],
}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "sound.pt", STATE)
    return tmp_path / "sound.pt"


def sealed(path: Path, content: Any) -> Path:
    """As a stranger who knows the checksum would write it."""
    torch.save(content, path)
    append_checksum(path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint("ckpt", path)
    assert f"ckpt={path}" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_checkpoint_round_trip(sound: Path) -> None:
    state = load_checkpoint("ckpt", sound)
    assert state["step"] == 12
    assert state["config"].schedule == composed().schedule
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert torch.load(sound, weights_only=True)["classes"] == ["cat", "dog"]
    assert zipfile.ZipFile(sound).testzip() is None  # still an archive, with a comment


def test_flipped_bits_are_detected(sound: Path) -> None:
    content, random_ = sound.read_bytes(), random.Random(0)
    places = [0, len(content) - 1, *(random_.randrange(len(content)) for _ in range(100))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << random_.randrange(8)
        sound.write_bytes(changed)
        with pytest.raises(CorruptCheckpoint):
            load_checkpoint("ckpt", sound)


def test_truncated_checkpoints_are_detected(sound: Path) -> None:
    content, random_ = sound.read_bytes(), random.Random(0)
    for length in [0, 1, len(content) - 1, *(random_.randrange(len(content)) for _ in range(100))]:
        sound.write_bytes(content[:length])
        with pytest.raises(CorruptCheckpoint):
            load_checkpoint("ckpt", sound)


def test_crash_while_writing_keeps_the_old_checkpoint(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(sound, {**STATE, "step": 13})
    assert load_checkpoint("ckpt", sound)["step"] == 12
    assert [file.name for file in sound.parent.iterdir()] == ["sound.pt"]


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/ddpm-cli-was-here"),)


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(Hostile())], ids=["empty", "text", "pickle"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    assert "not a checkpoint" in refused(tmp_path / "other.pt")
    assert not Path("/tmp/ddpm-cli-was-here").exists()


WHOLE = {**STATE, "format": FORMAT}
FOREIGN: dict[str, tuple[Any, str]] = {
    "code": ({**WHOLE, "model": Hostile()}, "not a checkpoint"),
    "list": ([1, 2], "not a checkpoint"),
    "foreign": ({"state_dict": {}}, "not a checkpoint"),
    "newer": ({**WHOLE, "format": FORMAT + 1}, f"format {FORMAT + 1}, but this version reads format {FORMAT}"),
    "partial": ({"format": FORMAT, "step": 1}, "classes, config, data, ema"),
    "odd format": ({**WHOLE, "format": torch.ones(2)}, "not a checkpoint"),
    "odd step": ({**WHOLE, "step": "abc"}, "invalid step"),
    "negative step": ({**WHOLE, "step": -1}, "invalid"),
    "odd classes": ({**WHOLE, "classes": [1, 2]}, "invalid"),
    "surprise": ({**WHOLE, "config": {**STATE["config"], "surprise": 1}}, "surprise"),
    "absurd": ({**WHOLE, "config": {**STATE["config"], "device": ["cpu"]}}, "device"),
    "sparse": ({**WHOLE, "model": {"w": torch.ones(2).to_sparse(), "x": {1, 2}}}, "not a checkpoint"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_invalid_contents_are_rejected(tmp_path: Path, name: str) -> None:
    content, message = FOREIGN[name]
    assert message in refused(sealed(tmp_path / "foreign.pt", content))
    assert not Path("/tmp/ddpm-cli-was-here").exists()


def test_nested_lists_do_not_exhaust_memory(tmp_path: Path) -> None:
    laughs: list[Any] = []
    for _ in range(9):
        laughs = [laughs] * 1000  # a pickle holds each once
    assert "not a checkpoint" in refused(sealed(tmp_path / "laughs.pt", {**WHOLE, "losses": {"x": laughs}}))


def rewritten(source: Path, change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """The archive again, with each of its entries changed, and sealed."""
    path = source.with_name("rewritten.pt")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(*change(entry, old.read(entry)))
    append_checksum(path)
    return path


def test_compressed_entries_are_refused_before_they_are_unpacked(sound: Path) -> None:
    def bomb(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        entry.compress_type = zipfile.ZIP_DEFLATED
        return entry, content + bytes(10_000_000 * entry.filename.endswith("data/0"))

    assert "compressed" in refused(rewritten(sound, bomb))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sound/data/../../x", "sound\\data.pkl", "a/b/c"])
def test_unknown_archive_entries_are_rejected(sound: Path, name: str) -> None:
    def renamed(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        entry.filename = name if entry.filename.endswith("data/0") else entry.filename
        return entry, content

    assert "other names" in refused(rewritten(sound, renamed))


def test_oversized_pickle_is_rejected(sound: Path) -> None:
    def long(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        return entry, content + bytes(MAX_PICKLE * entry.filename.endswith(".pkl"))

    assert "too much besides the tensors" in refused(rewritten(sound, long))


def test_tensors_outside_the_file_are_rejected(sound: Path) -> None:
    """torch believes what a pickle says of its tensors' sizes: 4 bytes here, a gigabyte by its word."""

    def claims(entry: zipfile.ZipInfo, content: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        return entry, content.replace(b"K\x03", b"J\x00\x00\x00\x10") if entry.filename.endswith(".pkl") else content

    state = None
    try:
        state = load_checkpoint("ckpt", rewritten(sound, claims))
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
    read = load_checkpoint("ckpt", sealed(tmp_path / "paths.pt", {**WHOLE, "config": config}))["config"]
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
def test_weights_of_another_architecture_are_rejected(sound: Path, weights: Any, message: str) -> None:
    check_matches("ckpt", sound, {"model": {"w": torch.zeros(3)}}, LIKE)
    with pytest.raises(UserError) as caught:
        check_matches("ckpt", sound, {"model": weights}, LIKE)
    assert message in str(caught.value)


def test_weights_larger_than_the_file_are_refused(sound: Path) -> None:
    large = os.stat(sound).st_size  # noqa: PTH116
    expanded = {"model": {"w": torch.zeros(1).expand(large)}}
    with pytest.raises(UserError, match="larger inside than the file"):
        check_matches("ckpt", sound, expanded, {"model": {"w": torch.empty(large, device="meta")}})
