"""Stored checkpoints of every format since 5 are read: sampled, resumed and exported.

Each is a network of a few thousand parameters after two of four steps on digits, and its safetensors file after four.
images.npz has the samples that this version draws with them, which later versions must draw too.
"""

import dataclasses
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ddpm_cli
from ddpm_cli.checkpoints.format import TYPES, load_checkpoint
from ddpm_cli.checkpoints.migrations import FORMAT, OLDEST
from ddpm_cli.config import GROUPS, TrainConfig, option_name
from ddpm_cli.training.loss_monitor import LossMonitor
from tests.conftest import Result

STORED = Path(__file__).parent / "formats"
FILES = sorted(path.name for path in STORED.glob("*.xz"))


def unpacked(name: str, folder: Path) -> Path:
    """Unpack a stored checkpoint and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name.removesuffix(".xz")
    path.write_bytes(lzma.decompress((STORED / name).read_bytes()))
    return path


def images(path: Path, sampler: str) -> np.ndarray:
    model = ddpm_cli.load(path, device="cpu")
    drawn = model.sample(4, seed=3, sampler=sampler, steps=5).images
    return ((drawn + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def test_every_format_is_stored() -> None:
    formats = {int(name.split(".")[0].removeprefix("format_")) for name in FILES}
    assert formats == {*range(OLDEST, FORMAT)}
    assert sum(path.stat().st_size for path in STORED.iterdir()) < 100_000 * len(formats)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("name", FILES)
def test_samples_stay_the_same(name: str, sampler: str, tmp_path: Path) -> None:
    drawn = images(unpacked(name, tmp_path), sampler).astype(int)
    with np.load(STORED / "images.npz") as stored:
        expected = stored[f"{name.removesuffix('.xz')} {sampler}"].astype(int)
    assert np.abs(drawn - expected).max() <= 1
    assert expected.std() > 10


@pytest.mark.parametrize("name", [name for name in FILES if ".pt" in name])
def test_older_run_is_resumed(name: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    unpacked(name, tmp_path / "run" / "checkpoints").rename(tmp_path / "run/checkpoints/last.pt")
    result = run("train", f"resume={tmp_path}/run", "device=cpu")
    assert result.code == 0, result.err
    last = tmp_path / "run/checkpoints/last.pt"
    state = load_checkpoint("ckpt", last)
    assert (state["step"], state["written_format"]) == (4, FORMAT)
    assert (tmp_path / "run/train.log").read_text().count(f"have format {FORMAT}") == 1


def schema() -> list[str]:
    """Return the keys and types of a checkpoint and of the config in it, a line each."""
    lines = [f"{key}: {kind.__name__}" for key, kind in TYPES.items()]
    lines += [f"losses.{key}: {type(value).__name__}" for key, value in LossMonitor(1).state().items()]
    lines += [f"config.{line}" for line in _fields(TrainConfig)]
    for options in GROUPS.values():
        for option in options:
            if option.__module__.startswith("ddpm_cli."):
                lines += [f"config.{option.group}={option_name(option)}.{line}" for line in _fields(option)]
    return sorted(lines)


def _fields(kind: type) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type) and field.type not in GROUPS:
            lines += [f"{field.name}.{line}" for line in _fields(field.type)]  # type: ignore[arg-type]
        else:
            lines.append(f"{field.name}: {getattr(field.type, '__name__', field.type)}")
    return lines


def test_change_of_the_contents_has_a_new_format() -> None:
    """After a change: raise FORMAT, write a migration, store a checkpoint of the old format, then update this file."""
    stored = (STORED / f"schema_{FORMAT}.txt").read_text().splitlines()
    assert schema() == stored
