"""Fixtures of the fault tests: data, a shared cache and undisturbed reference runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import FREQUENT, SMALL, train_to_end, write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty folder with a shared cache, so that the digits are decoded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_CACHE", str(cache))


@pytest.fixture(scope="session")
def small(digits: Path) -> list[str]:
    """Return the overrides of a run of a few seconds, without `out`."""
    return [*SMALL, f"dataset.root={digits}", *FREQUENT]


@pytest.fixture(scope="session")
def undisturbed(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from additional overrides to the folder of an undisturbed run with them."""
    folders: dict[tuple[str, ...], Path] = {}

    def folder(*overrides: str) -> Path:
        if overrides not in folders:
            folders[overrides] = tmp_path_factory.mktemp("undisturbed") / "run"
            train_to_end(*small, *overrides, f"out={folders[overrides]}")
        return folders[overrides]

    return folder
