"""Find run folders."""

import os
from collections.abc import Iterator
from pathlib import Path


def run_folders(top: Path) -> Iterator[Path]:
    """Yield the run folders at or below `top` in the order of their names. Symbolic links are not followed."""
    for place, below, _ in os.walk(top):
        folder = Path(place)
        if (folder / ".hydra" / "config.yaml").is_file() and (folder / "metrics.csv").is_file():
            below.clear()
            yield folder
        below.sort(key=by_number)


def by_number(name: str) -> tuple[int, int, str]:
    """Return a sort key that orders the job numbers of a sweep (0, 1, 10) as numbers, before all other names."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() and len(name) < 10 else (1, 0, name)
