"""The .safetensors file: it can be read by this package and by safetensors; damaged and foreign files are refused."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_cli.checkpoints.loading import load_weights
from ddpm_cli.checkpoints.safetensors_file import MAX_HEADER, Weights, read_weights, write_weights
from ddpm_cli.checkpoints.stored_config import from_stored, to_stored
from ddpm_cli.errors import UserError
from ddpm_cli.sampling.build import network_of
from tests.conftest import TINY, composed

CONFIG = from_stored(to_stored(composed(*TINY)))


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    return Weights(CONFIG, [], 12, "ema", dict(network_of(CONFIG, []).state_dict()))


@pytest.fixture
def valid(weights: Weights, tmp_path: Path) -> Path:
    write_weights(tmp_path / "valid.safetensors", weights)
    return tmp_path / "valid.safetensors"


def same(one: Weights, other: Weights) -> bool:
    same_names = one.tensors.keys() == other.tensors.keys()
    return (
        same_names
        and replace(one, tensors={}) == replace(other, tensors={})
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def test_safetensors_round_trip(valid: Path, weights: Weights) -> None:
    assert same(load_weights("ckpt", valid, "ema"), weights)


def test_safetensors_library_reads_weights_and_config(valid: Path, weights: Weights) -> None:
    tensors = load_file(valid)
    assert tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(tensors[name], weights.tensors[name]) for name in tensors)
    with safe_open(valid, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # other libraries check this
    about = json.loads(metadata["ddpm_cli"])
    assert (about["step"], about["weights"], about["classes"]) == (12, "ema", [])
    assert about["config"] == json.loads(json.dumps(to_stored(CONFIG)))


def test_safetensors_file_contains_no_paths(weights: Weights, tmp_path: Path) -> None:
    config = replace(CONFIG, out="/home/somebody/run", dataset=replace(CONFIG.dataset, root="/home/somebody/data"))
    write_weights(tmp_path / "x.safetensors", replace(weights, config=config))
    assert b"/home/somebody" not in (tmp_path / "x.safetensors").read_bytes()


def refusal(path: Path, kind: str = "ema") -> str:
    with pytest.raises(UserError) as raised:
        load_weights("ckpt", path, kind)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_requesting_the_other_weights_is_an_error(valid: Path) -> None:
    assert refusal(valid, "model") == f"weights=model: {valid} contains only the ema weights; use weights=ema"


def test_truncated_files_are_rejected(valid: Path, tmp_path: Path) -> None:
    content = valid.read_bytes()
    for size in (0, 1, 7, 8, 9, 500, len(content) // 2, len(content) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:size])
        assert refusal(cut) == f"ckpt={cut}: damaged, or no .safetensors file; name another"


def test_flipped_bits_are_detected_or_harmless(valid: Path, weights: Weights, tmp_path: Path) -> None:
    """Check random bit flips. Only those in the format mark for other libraries are harmless."""
    content, rng, harmless = valid.read_bytes(), random.Random(0), 0
    header = struct.unpack("<Q", content[:8])[0] + 8
    positions = [rng.randrange(header) for _ in range(300)] + [rng.randrange(len(content)) for _ in range(100)]
    flipped = tmp_path / "flipped.safetensors"
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        flipped.write_bytes(changed)
        try:
            found = load_weights("ckpt", flipped, "ema")
        except UserError:
            continue
        harmless += 1
        assert same(found, weights)
    assert harmless <= 4


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, MAX_HEADER + 1])
def test_oversized_header_is_rejected(length: int, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(2**24)
    assert "damaged, or no .safetensors file" in refusal(path)


def test_pickle_named_safetensors_is_rejected(tmp_path: Path) -> None:
    torch.save({"format": 3}, tmp_path / "x.safetensors")
    assert "damaged, or no .safetensors file" in refusal(tmp_path / "x.safetensors")


def test_file_of_another_program_is_rejected(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert "not a file of ddpm-export" in refusal(tmp_path / "x.safetensors")


def deep() -> str:
    return "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda about: "{", "not a file of ddpm-export"),
        (lambda about: deep(), "not a file of ddpm-export"),
        (lambda about: "[1]", "not a file of ddpm-export"),
        (lambda about: json.dumps(about | {"format": 99}), "format 99, but this version reads formats 5 to 8"),
        (lambda about: json.dumps(about | {"step": -1}), "not a file of ddpm-export: invalid step"),
        (lambda about: json.dumps(about | {"step": True}), "not a file of ddpm-export: invalid step"),
        (lambda about: json.dumps(about | {"weights": "best"}), "not a file of ddpm-export: invalid weights"),
        (lambda about: json.dumps(about | {"classes": [1]}), "not a file of ddpm-export: invalid classes"),
        (lambda about: json.dumps(about | {"classes": ["cat"]}), "its classes do not match its conditioning"),
        (lambda about: json.dumps(about | {"config": {}}), "cannot be used: config: "),
        (
            lambda about: json.dumps(about | {"config": about["config"] | {"prediction": "noise"}}),
            "cannot be used: prediction=noise: must be eps, x0, v, edm or flow",
        ),
        (
            lambda about: json.dumps(about | {"config": about["config"] | {"model": {"name": "os.system"}}}),
            "cannot be used: model.name=os.system: must be",
        ),
    ],
)
def test_hostile_metadata_is_rejected(
    change: Callable[[dict[str, Any]], str],
    named: str,
    valid: Path,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check metadata with a valid checksum, as a hostile author would write it."""
    with safe_open(valid, "pt") as file:
        about = json.loads(file.metadata()["ddpm_cli"])
    text = change(about)
    monkeypatch.setattr("ddpm_cli.checkpoints.safetensors_file.json.dumps", lambda _: text)
    write_weights(tmp_path / "x.safetensors", weights)
    monkeypatch.undo()
    assert named in refusal(tmp_path / "x.safetensors")


def test_weights_must_match_the_config(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    name = next(iter(weights.tensors))
    for changed in (
        weights.tensors | {name: weights.tensors[name].double()},
        weights.tensors | {name: weights.tensors[name][:1].clone()},
        weights.tensors | {name: weights.tensors[name] * float("nan")},
        weights.tensors | {"more": torch.zeros(2)},
    ):
        write_weights(path, replace(weights, tensors=changed))
        assert "does not fit the network in its config" in refusal(path)


def test_folder_named_safetensors_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_weights("ckpt", tmp_path / "x.safetensors")
