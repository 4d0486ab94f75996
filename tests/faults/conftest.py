"""What the faults have in common: data, a cache of their own, runs that nothing happened to."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import FREQUENT, SMALL, trained, write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, but decode the digits once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_CACHE", str(cache))


@pytest.fixture(scope="session")
def small(digits: Path) -> list[str]:
    """A run of a few seconds: what to type, but for `out`."""
    return [*SMALL, f"dataset.root={digits}", *FREQUENT]


@pytest.fixture(scope="session")
def undisturbed(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run with some knobs turned, which nothing happened to."""
    folders: dict[tuple[str, ...], Path] = {}

    def folder(*knobs: str) -> Path:
        if knobs not in folders:
            folders[knobs] = tmp_path_factory.mktemp("undisturbed") / "run"
            trained(*small, *knobs, f"out={folders[knobs]}")
        return folders[knobs]

    return folder
