"""Settings of all benchmarks."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """`data` is a folder written by `data.prepare`. `ckpt` is a checkpoint of which `n` samples are measured."""

    data: Path
    threads: int
    rounds: int
    batch_size: int
    ckpt: str | None = None
    n: int = 2000
