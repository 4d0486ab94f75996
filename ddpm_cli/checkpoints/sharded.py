"""Sharded checkpoints: each rank writes its parts of the tensors while training continues.

They are .safetensors files in a folder beside the checkpoint, which has the rest of the state and their checksums. It
is written last, so that a checkpoint whose shards are incomplete is never seen.
"""

import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ddpm_cli.checkpoints.checksum import Damaged, sha256_of_file
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Failure, UserError
from ddpm_cli.files import NoRoom, no_room

SHARDED = ("model", "ema", "averages", "optimizer")
NUMBERED = ("averages", "optimizer")
"""Items of a state whose tensors are in shards. Those that are NUMBERED have several tensors of each name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
DIGEST = re.compile(r"[0-9a-f]{64}")


def shards_of(checkpoint: Path, step: int) -> Path:
    """Return the folder of the shards of a checkpoint, which may also be named last.pt or best.pt."""
    return checkpoint.with_name(f"step_{step:08d}.shards")


def check_supported() -> None:
    """Raise `UserError` if the installed packages cannot write sharded checkpoints."""
    try:
        import safetensors  # noqa: F401  # optional: pip install 'ddpm-cli[export]'
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # noqa: F401
    except ImportError as error:
        raise UserError(
            "checkpoint.sharded=true: needs safetensors and torch 2.9; pip install 'ddpm-cli[export]' 'torch>=2.9'"
        ) from error


class ShardWriter:
    """Writes the shards of a run's checkpoints in the background. All ranks must have one and call it."""

    def __init__(self, folder: Path) -> None:
        check_supported()
        self._run = RunFolder(folder)
        self._group: Any = dist.new_group(backend="gloo")  # of its own, because a thread uses it beside the training
        self._writing: Future[Any] | None = None

    def start(self, state: Mapping[str, Any]) -> "Shards":
        """Copy the tensors of a state, in which they are sharded, and start to write them."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        if self._writing is not None:
            self._writing.exception()  # waits; rank 0 raises the error, if any
        folder = shards_of(self._run.checkpoint(state["step"]), state["step"])
        collectives.on_rank_zero(lambda: _remove(folder))  # of processes that were killed
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        tensors = _flat({key: state[key] for key in SHARDED})
        writing = async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(writing, Future)
        self._writing = writing
        return Shards(folder, writing, sum(x.numel() * x.element_size() for x in tensors.values()))


class Shards:
    """The shards of a checkpoint in `folder` that are being written, about `size` bytes together."""

    def __init__(self, folder: Path, writing: Future[Any], size: int) -> None:
        self._folder, self._writing, self._size = folder, writing, size

    def checksums(self) -> dict[str, str]:
        """Wait for the shards of all ranks, and return the SHA-256 of each by its name.

        Raise `NoRoom` or `Failure` if one could not be written; no shards are left then.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            self._writing.result()
            return {file.name: sha256_of_file(file) for file in sorted(self._folder.iterdir())}
        except (CheckpointException, OSError) as error:
            _remove(self._folder)
            causes = [one for one, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
            if any(map(no_room, causes)):
                raise NoRoom(self._folder, self._size) from error
            raise Failure(f"{self._folder}: cannot be written ({' '.join(str(causes[0]).split())})") from error


def without_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without what is in its shards."""
    return {key: {} if key in SHARDED else value for key, value in state.items()}


def valid_shards(shards: Mapping[Any, Any]) -> bool:
    """Return whether the names and checksums of shards are such as `Shards.checksums` returns."""
    return all(
        isinstance(name, str) and NAME.fullmatch(name) and isinstance(digest, str) and DIGEST.fullmatch(digest)
        for name, digest in shards.items()
    )


def read_shards(folder: Path, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Return the items `SHARDED` of a state from the shards in `folder`, which are files of data, never of code.

    Takes little more memory than the files. Raise `Damaged` if one is missing or changed, and `UserError` if
    safetensors is not installed.
    """
    check_supported()
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    for name, digest in checksums.items():
        if not (folder / name).is_file():
            raise Damaged(f"damaged: {folder / name} is missing")
        if sha256_of_file(folder / name) != digest:
            raise Damaged(f"damaged: the checksum of {folder / name} does not match")
    if unknown := {file.name for file in folder.iterdir()} - checksums.keys():
        raise Damaged(f"damaged: {folder / min(unknown)} is not one of its files")
    reader = HuggingFaceStorageReader(str(folder))
    try:
        stored = reader.read_metadata().state_dict_metadata.items()
        # On the meta device, because a hostile file may claim any size.
        shapes = {
            name: torch.empty(about.size, dtype=about.properties.dtype, device="meta")
            for name, about in stored
            if isinstance(about, TensorStorageMetadata)
        }
        if sum(x.nbytes for x in shapes.values()) > sum((folder / name).stat().st_size for name in checksums):
            raise Damaged("damaged: its shards are larger inside than the files themselves")
        tensors = {name: torch.zeros_like(x, device="cpu") for name, x in shapes.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be here
            load(tensors, storage_reader=reader, no_dist=True)
        return _nested(tensors)
    except Damaged:
        raise
    except (Exception, CheckpointException) as error:  # safetensors and torch raise several types
        raise Damaged("damaged: its shards cannot be read") from error


def remove_shards(checkpoint: Path) -> None:
    """Remove the shards of a checkpoint step_XXXXXXXX.pt, if it has any."""
    _remove(checkpoint.with_suffix(".shards"))


def _remove(folder: Path) -> None:
    """Remove a folder. Of a link only itself is removed, so that nothing is written through it later."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _flat(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state by names such as model.out.bias and optimizer.3.exp_avg."""
    flat = {f"{kind}.{name}": x.detach() for kind in ("model", "ema") for name, x in state[kind].items()}
    return flat | {
        f"{kind}.{i}.{name}": x.detach()
        for kind in NUMBERED
        for i, own in state[kind].items()
        for name, x in own.items()
    }


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the inverse of `_flat`. Raise `ValueError` for other names."""
    state: dict[str, Any] = {kind: {} for kind in SHARDED}
    for key, x in flat.items():
        kind, name = key.split(".", 1)
        if kind in NUMBERED:
            number, name = name.split(".", 1)
            state[kind].setdefault(int(number), {})[name] = x
        elif kind in state:
            state[kind][name] = x
        else:
            raise ValueError(key)
    return state
