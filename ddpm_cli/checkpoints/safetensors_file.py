"""A network as a .safetensors file: its weights, and in the metadata what else sampling needs."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.checkpoints.format import LONGEST, MAX_STEP, in_current_format
from ddpm_cli.checkpoints.migrations import FORMAT
from ddpm_cli.checkpoints.stored_config import from_stored, plugins_of, to_stored
from ddpm_cli.config import TrainConfig
from ddpm_cli.config.averages import length_of
from ddpm_cli.errors import UserError
from ddpm_cli.files import write
from ddpm_cli.tracking.timeline import are_phases, images_seen

EARLIER_FORMATS = {2: 5}
"""Formats of files that were numbered differently from checkpoints, and those of the checkpoints of their time."""
MAX_HEADER = 8 * 2**20
"""Largest header in bytes: several times that of the largest network."""
TYPES = {
    "format": int,
    "step": int,
    "phases": list,
    "weights": str,
    "classes": list,
    "config": dict,
    "plugins": dict,
}
"""Keys of the JSON object in the metadata entry `ddpm_cli`."""


@dataclass(frozen=True)
class Weights:
    """Weights with their config.

    kind: ema, model or an average such as ema:0.1. tensors: on the CPU. phases: of the run, see `Phase`; empty for
    weights of other libraries.
    """

    config: TrainConfig
    classes: list[str]
    step: int
    kind: str
    tensors: dict[str, Tensor]
    phases: list[list[int]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of examples that the weights were trained on."""
        return images_seen(self.phases, self.step) if self.phases else 0


def write_weights(path: Path, weights: Weights) -> None:
    """Write `weights` with a checksum, atomically. Raise `NoRoom`, or `UserError` if safetensors is not installed."""
    about = json.dumps(
        {
            "format": FORMAT,
            "step": weights.step,
            "phases": weights.phases,
            "weights": weights.kind,
            "classes": weights.classes,
            "config": to_stored(weights.config),
            "plugins": plugins_of(weights.config),
        }
    )
    write_tensors(path, weights.tensors, {"ddpm_cli": about, "sha256": _sha256_of_tensors(about, weights.tensors)})


def read_weights(key: str, path: Path) -> Weights:
    """Read what `write_weights` wrote. Raise `UserError`, which names `key`, for other and damaged files."""
    tensors, metadata = read_tensors(key, path)
    about = metadata.get("ddpm_cli")
    if about is None:
        raise UserError(f"{key}={path}: not a file of ddpm-export; ddpm-import reads folders of the diffusers library")
    if _sha256_of_tensors(about, tensors) != metadata.get("sha256"):
        raise UserError(f"{key}={path}: damaged: its checksum does not match; name another file")
    try:
        state = json.loads(about)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise UserError(f"{key}={path}: not a file of ddpm-export; name another")
    state["format"] = EARLIER_FORMATS.get(state["format"], state["format"])
    state = in_current_format(key, path, state)
    if wrong := _mismatch(state):
        raise UserError(f"{key}={path}: not a file of ddpm-export: invalid {', '.join(wrong)}; name another")
    try:
        config = from_stored(state["config"])
    except UserError as error:
        raise UserError(f"{key}={path}: cannot be used: {str(error)[:LONGEST]}") from error
    return Weights(config, state["classes"], state["step"], state["weights"], tensors, state["phases"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors on the CPU. Raise `NoRoom`, or `UserError` if safetensors is not installed."""
    safetensors = _safetensors(str(path))
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write(path, safetensors.torch.save(contiguous, {"format": "pt", **metadata}))


def read_tensors(key: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in any .safetensors file, which stay views of it, and its metadata.

    Takes little more memory than the file itself. Raises `UserError` where it is none, damaged or cut.
    """
    safetensors = _safetensors(f"{key}={path}")
    try:
        _check_header(path)
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror}); name another file") from error
    except Exception as error:  # safetensors, and torch below it, raise several kinds
        raise UserError(f"{key}={path}: damaged, or no .safetensors file; name another") from error


def _safetensors(wanted: str) -> Any:
    try:
        import safetensors
        import safetensors.torch  # optional: pip install 'ddpm-cli[export]'
    except ImportError as error:
        raise UserError(f"{wanted}: needs safetensors; pip install 'ddpm-cli[export]'") from error
    return safetensors


def _check_header(path: Path) -> None:
    """Raise `ValueError` for a header that is longer than the file or than any network needs."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
    if length > min(MAX_HEADER, path.stat().st_size):
        raise ValueError(length)


def _mismatch(state: Mapping[str, Any]) -> list[str]:
    """Return the names of the metadata entries that are invalid."""
    wrong = sorted(name for name, kind in TYPES.items() if type(state.get(name)) is not kind)
    if wrong:
        return wrong
    ok = {
        "step": 0 <= state["step"] <= MAX_STEP,
        "phases": state["phases"] == [] or are_phases(state["phases"], state["step"]),
        "weights": state["weights"] in ("ema", "model") or length_of(state["weights"]) is not None,
        "classes": all(isinstance(name, str) for name in state["classes"]),
    }
    return [name for name in ok if not ok[name]]


def _sha256_of_tensors(about: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the text and of the name and bytes of every tensor, in hexadecimal."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
