"""The folders that hold runs."""

import os
from collections.abc import Iterator
from pathlib import Path


def run_folders(top: Path) -> Iterator[Path]:
    """The folders from `top` down that hold a run, in the order of their names; links are not followed."""
    for place, below, _ in os.walk(top):
        folder = Path(place)
        if (folder / ".hydra" / "config.yaml").is_file() and (folder / "metrics.csv").is_file():
            below.clear()
            yield folder
        below.sort(key=by_number)


def by_number(name: str) -> tuple[int, int, str]:
    """A key that sorts 0, 1, 10 of a sweep as numbers, and before all other names."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() and len(name) < 10 else (1, 0, name)
