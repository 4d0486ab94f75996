"""What all benchmarks are told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """data: a folder made by `data.prepare`. threads: of every system. ckpt: what n samples are measured of."""

    data: Path
    threads: int
    rounds: int
    batch_size: int
    ckpt: str | None = None
    n: int = 2000
