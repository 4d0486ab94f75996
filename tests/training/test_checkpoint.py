import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.errors import UserError
from ddpm_cli.training.checkpoint import FORMAT, KEYS, find_checkpoint, load_checkpoint, save_checkpoint
from tests.conftest import composed

STATE = {key: {} for key in KEYS - {"format"}} | {
    "step": 12,
    "seconds": 3.5,
    "config": asdict(composed()),
    "model": {"w": torch.arange(3.0)},
    "classes": ["cat", "dog"],
}


def test_saved_whole_and_found_by_folder_or_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, STATE)
    assert path == tmp_path / "checkpoints" / "step_00000012.pt"
    assert find_checkpoint("ckpt", str(path)) == path
    last = find_checkpoint("ckpt", str(tmp_path))
    state = load_checkpoint("ckpt", last)
    assert state["step"] == 12
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pt", "step_00000012.pt"]


def test_last_moves_on_and_earlier_ones_stay(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, STATE)
    save_checkpoint(tmp_path, {**STATE, "step": 13})
    assert load_checkpoint("ckpt", first)["step"] == 12
    assert load_checkpoint("ckpt", find_checkpoint("ckpt", str(tmp_path)))["step"] == 13


def test_without_hard_links_last_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("os.link", refuse)
    save_checkpoint(tmp_path, STATE)
    assert load_checkpoint("ckpt", find_checkpoint("ckpt", str(tmp_path)))["step"] == 12


def test_a_crash_while_writing_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, STATE)

    def half(state: Any, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**STATE, "step": 13})
    assert load_checkpoint("ckpt", find_checkpoint("ckpt", str(tmp_path)))["step"] == 12
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "last.pt",
        "step_00000012.pt",
    ]


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/ddpm-cli-was-here"),)


def test_what_is_not_a_checkpoint_is_refused_in_a_line(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps(Hostile()),
        "list": [1, 2],
        "foreign": {"state_dict": {}},
        "newer": {**STATE, "format": FORMAT + 1},
        "partial": {"format": FORMAT, "step": 1},
        "odd format": {**STATE, "format": torch.ones(2)},
        "odd step": {**STATE, "format": FORMAT, "step": "abc"},
        "odd classes": {**STATE, "format": FORMAT, "classes": [1, 2]},
        "surprise": {**STATE, "format": FORMAT, "config": {**STATE["config"], "surprise": 1}},
        "absurd": {**STATE, "format": FORMAT, "config": {**STATE["config"], "device": ["cpu"]}},
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError) as caught:
            load_checkpoint("ckpt", path)
        assert f"ckpt={path}" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not Path("/tmp/ddpm-cli-was-here").exists()
    with pytest.raises(UserError, match=f"format {FORMAT + 1}.*reads format {FORMAT}"):
        load_checkpoint("ckpt", tmp_path / "newer.pt")


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt=/nowhere"):
        find_checkpoint("ckpt", "/nowhere")
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        find_checkpoint("resume", str(tmp_path))
