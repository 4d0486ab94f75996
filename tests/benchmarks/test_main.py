import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.report import Section
from tests.benchmarks.setup import Setup


def fake(title: str) -> Callable[[Setup], Section]:
    return lambda setup: Section(title, ["rounds"], [[str(setup.rounds)]], [], {})


@pytest.fixture
def run_benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return a function that runs the command with fake sections in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(benchmarks, "SECTIONS", {name: fake(name) for name in benchmarks.SECTIONS})
    monkeypatch.setattr(benchmarks, "prepare", lambda data: "noise")
    monkeypatch.setattr(benchmarks, "EXTRAS", ())

    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["benchmarks", *words])
        benchmarks.main()

    return call


def test_all_benchmarks_run(run_benchmarks: Callable[..., None]) -> None:
    run_benchmarks("--rounds", "3")
    (file,) = Path("outputs/bench").glob("*.json")
    found = json.loads(file.read_text())
    parts = ("step", "input", "sampling", "startup", "memory", "scale", "sharing")
    assert [found[name]["rows"] for name in parts] == [[["3"]]] * 7
    assert file.with_suffix(".md").read_text().count("## ") == 7


def test_single_benchmark(run_benchmarks: Callable[..., None]) -> None:
    run_benchmarks("input", "--out", "here")
    (file,) = Path("here").glob("*.json")
    assert json.loads(file.read_text()).keys() == {"machine", "data", "input"}


def test_missing_package_is_one_line(run_benchmarks: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "EXTRAS", ("no_such_package",))
    with pytest.raises(SystemExit, match=r"no_such_package missing; pip install -e '\.\[bench\]'"):
        run_benchmarks("memory")
    run_benchmarks("startup")
