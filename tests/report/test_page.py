"""Tests of the HTML file: size, data, escaping of names and absence of external resources."""

import json
import math
import os
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from ddpm_cli.report.page import is_page, page_of
from ddpm_cli.report.runs import find_runs
from ddpm_cli.report.table import best_runs
from ddpm_cli.report.write import write_report
from tests.report.folders import a_run, evaluate, paint, paint_film


class PageParser(HTMLParser):
    """Parse a page into its tags with their attributes and the texts of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def page_in(folder: Path, plotly: str = "") -> str:
    return page_of(find_runs([str(folder)]), f"Runs in {folder}", plotly)


def test_page_data(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "loss=l1", "train.lr=1e-2", scores={"fid": 3.5}, milestones=[10, 20], film=True)
    a_run(tmp_path / "1", "loss=l2", "train.lr=1e-3", losses=[1.0, math.nan])
    data = PageParser(page_in(tmp_path)).data
    assert data["settings"] == ["loss", "train.lr"]
    assert data["metrics"] == [{"name": "fid", "higher": False}]
    assert data["heat"] == [
        {"key": "loss", "values": ["l1", "l2"]},
        {"key": "train.lr", "values": ["1e-3", "1e-2"]},  # sorted as numbers
    ]
    first, second = data["runs"]
    assert first["curve"] == {"steps": [10, 20, 30, 40], "losses": [1.0, 0.5, 0.25, 0.125]}
    assert list(first["grids"]) == ["10", "20"]
    assert set(first["film"]) == {"moving", "still"}
    assert first["scores"]["fid"]["value"] == 3.5
    assert (second["curve"]["losses"], second["loss"], second["diverged"]) == ([1.0, None], None, True)
    assert (second["grids"], second["film"], second["scores"]) == ({}, None, {})


def test_heat_map_requires_two_swept_settings(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "loss=l1")
    assert PageParser(page_in(tmp_path)).data["heat"] is None
    a_run(tmp_path / "1", "loss=l2", "train.lr=1e-3", "train.batch_size=4")
    assert PageParser(page_in(tmp_path)).data["heat"] is None


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    losses = [float(i % 3) for i in range(1501)]  # 1502 rows in groups of four
    a_run(tmp_path / "0", losses=[*losses, math.nan])
    curve = PageParser(page_in(tmp_path)).data["runs"][0]["curve"]
    assert len(curve["steps"]) == len(curve["losses"]) == 376
    assert (curve["steps"][:2], curve["losses"][:2]) == ([40, 80], [0.75, 1.0])
    assert (curve["steps"][-1], curve["losses"][-1]) == (15020, 0.0)


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "0", "train.steps=null", "train.epochs=2", losses=[math.inf])
    with (folder / "metrics.csv").open("a") as stream:
        stream.write("50,nan,1e-300,1e308,0,0,0,inf,nan\n60,1e300,1e-300,1e308,0,0,0,inf,-inf\n" * 10)
    run = PageParser(page_in(tmp_path)).data["runs"][0]
    assert (run["seconds"], run["speed"], run["planned"]) == (None, 101, None)


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--{{plotly}}&amp;"
    folder = a_run(tmp_path / "runs" / evil.replace("/", "\u2215"), "loss=l1", scores={"</script><b>": 1.0})
    (folder / ".hydra/overrides.yaml").write_text(json.dumps([f"loss={evil}"]))
    page = page_of(find_runs([str(tmp_path / "runs")]), evil, "/* plotly */")
    reader = PageParser(page)
    assert len(reader.scripts) == 3  # data, plotly.js and the script of the page
    assert page.count("<script") == 3
    assert page.count("/* plotly */") == 1
    assert reader.data["title"] == evil
    assert reader.data["runs"][0]["command"] == f"ddpm-train 'loss={evil}'"


def test_names_that_are_not_valid_unicode(tmp_path: Path) -> None:
    a_run(tmp_path / "runs" / "\udcff\udcfe")
    page = page_in(tmp_path / "runs")
    assert page.encode()  # the title contains only the parent folder
    assert PageParser(page).data["runs"][0]["name"] == "\udcff\udcfe"


def test_page_has_no_external_resources(tmp_path: Path) -> None:
    a_run(tmp_path / "0", milestones=[10], film=True)
    reader = PageParser(page_in(tmp_path))
    addresses = [value for _, attrs in reader.tags for key, value in attrs.items() if key in ("src", "href")]
    assert addresses == ["data:,", "#runs"]
    (policy,) = [attrs["content"] for _, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*|unsafe-eval|connect-src", policy)
    assert is_page(page_in(tmp_path)[:1024])
    assert not is_page("<!doctype html>")


@pytest.mark.slow
def test_page_of_twelve_runs_is_smaller_than_ten_megabytes(tmp_path: Path) -> None:
    """Use grids and films of noise as the worst case, because noise is hardly compressible."""
    rng = np.random.default_rng(0)
    paint(tmp_path / "grids/noise.png", rng.integers(0, 256, (464, 464, 3)))
    for i in range(12):
        folder = a_run(tmp_path / "runs" / str(i), losses=rng.random(2000).tolist())
        paint_film(folder / "samples/film.gif", list(rng.integers(0, 256, (24, 116, 116))))
        for step in range(1, 9):
            os.link(tmp_path / "grids/noise.png", folder / f"samples/step_{step:08d}.png")
    page = page_in(tmp_path / "runs", get_plotlyjs())
    assert 8_000_000 < len(page.encode()) < 10_000_000
    for run in PageParser(page).data["runs"]:
        assert len(run["grids"]) == 8
        assert run["film"]


def test_pictures_of_the_best_runs_only(tmp_path: Path) -> None:
    values = [(7 * i) % 20 for i in range(20)]  # all different
    for i, value in enumerate(values):
        a_run(tmp_path / str(i), f"train.seed={i}", scores={"val_loss": value}, milestones=[10], film=True)
    a_run(tmp_path / "20", "train.seed=20", milestones=[10])
    data = PageParser(page_in(tmp_path)).data
    assert data["pictured"] == "of the 12 runs with the best val_loss"
    best = {str(i) for i, value in enumerate(values) if value < 12}
    assert {run["name"] for run in data["runs"] if run["pictured"]} == best
    assert {run["name"] for run in data["runs"] if run["grids"] and run["film"]} == best


@pytest.mark.parametrize(("scores", "compared"), [({"is": 1.0}, "is"), ({}, "final loss")])
def test_best_runs(tmp_path: Path, scores: dict[str, float], compared: str) -> None:
    for i in range(4):
        loss = math.nan if i == 3 else 3.0 - i
        a_run(tmp_path / str(i), losses=[loss], scores={name: value * i for name, value in scores.items() if i < 3})
    assert best_runs(find_runs([str(tmp_path)]), 2) == ([1, 2], compared)


@pytest.mark.slow
def test_report_of_a_thousand_runs(tmp_path: Path) -> None:
    """It takes less than 30 s and 20 MB, with a hundred rows of metrics.csv and ten grids in each run."""
    rng = np.random.default_rng(0)
    one = a_run(tmp_path / "one", losses=rng.random(100).tolist(), milestones=range(10, 101, 10), film=True)
    for i in range(1000):
        folder = tmp_path / "runs" / str(i)
        shutil.copytree(one, folder)
        (folder / ".hydra/overrides.yaml").write_text(json.dumps([f"train.lr={rng.random()}", f"train.seed={i}"]))
        evaluate(folder, val_loss=rng.random())
    started = time.perf_counter()
    write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    assert time.perf_counter() - started < 30
    assert (tmp_path / "report.html").stat().st_size < 20_000_000
    data = PageParser((tmp_path / "report.html").read_text()).data
    assert len(data["runs"]) == 1000
    assert all(40 < len(run["curve"]["steps"]) <= 60 for run in data["runs"])
