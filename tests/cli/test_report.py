"""ddpm-report: the files that it writes and replaces, and the input that it refuses."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, Result
from tests.report.folders import a_run

Run = Callable[..., Result]


def assert_refused(result: Result, message: str) -> None:
    assert result.code == 2
    assert result.err.startswith(f"ddpm-report: {message}"), result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err


def test_page_and_table_are_written_to_the_first_folder(run: Run, tmp_path: Path) -> None:
    for name in ("sweep/0", "sweep/1", "other"):
        a_run(tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    result = run("report", "sweep", "other")
    assert result.code == 0, result.err
    assert result.err.startswith("3 runs in sweep/report.html (")
    assert "Runs in sweep, other" in (tmp_path / "sweep/report.html").read_text()
    rows = list(csv.DictReader((tmp_path / "sweep/report.csv").open()))
    assert [row["run"] for row in rows] == ["sweep/0", "sweep/1", "other"]
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} == {"report.html", "report.csv"}
    assert before.items() <= after.items()


def test_title_names_at_most_three_folders(run: Run, tmp_path: Path) -> None:
    names = [a_run(tmp_path / f"run{i}").name for i in range(5)]
    assert run("report", *names).code == 0
    assert "<title>Runs in run0, run1, run2 and 2 more</title>" in (tmp_path / "run0/report.html").read_text()


@pytest.mark.parametrize("out", [["out=new/page.html"], ["--out", "new/page.html"], ["--out=new/page.html"]])
def test_out_sets_the_file_of_the_page(run: Run, tmp_path: Path, out: list[str]) -> None:
    a_run(tmp_path / "it")
    assert run("report", *out, "it").code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["page.csv", "page.html"]
    assert not (tmp_path / "it/report.html").exists()


def test_report_of_a_real_run(run: Run, tmp_path: Path) -> None:
    assert run("train", *TINY, "train.steps=4", "train.log_every=2", "train.milestone_every=2", "out=here").code == 0
    assert run("report", "here").code == 0
    (row,) = csv.DictReader((tmp_path / "here/report.csv").open())
    assert (row["steps"], row["steps_planned"], row["run"]) == ("4", "4", "here")
    assert row["command"].startswith("ddpm-train dataset=digits model=tiny")
    assert "out=" not in row["command"]
    page = (tmp_path / "here/report.html").read_text()
    assert '"grids":{"2":"data:image/webp' in page
    assert run("train", "resume=here", "train.steps=6").code == 0  # a report in the folder does not prevent resuming


def test_only_earlier_reports_are_overwritten(run: Run, tmp_path: Path) -> None:
    a_run(tmp_path / "runs/0")
    assert run("report", "runs").code == 0
    a_run(tmp_path / "runs/1")
    assert run("report", "runs").code == 0
    assert len((tmp_path / "runs/report.csv").read_text().splitlines()) == 3
    (tmp_path / "runs/report.csv").write_text("mine\n")
    page = (tmp_path / "runs/report.html").read_text()
    assert_refused(run("report", "runs"), "out=runs/report.html: runs/report.csv exists and is not a report")
    assert (tmp_path / "runs/report.csv").read_text() == "mine\n"
    assert (tmp_path / "runs/report.html").read_text() == page
    (tmp_path / "page.html").write_text("<!doctype html>")
    assert_refused(run("report", "runs", "out=page.html"), "out=page.html: page.html exists and is not a report")
    assert (tmp_path / "page.html").read_text() == "<!doctype html>"
    (tmp_path / "dangling.html").symlink_to("nowhere")
    assert_refused(run("report", "runs", "out=dangling.html"), "out=dangling.html: dangling.html exists")
    (tmp_path / "folder.html").mkdir()
    assert_refused(
        run("report", "runs", "out=folder.html"), "out=folder.html: folder.html is a folder; name another file"
    )


def test_invalid_input_is_refused(run: Run, tmp_path: Path) -> None:
    a_run(tmp_path / "it")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    names = sorted(tmp_path.rglob("*"))
    for words, message in {
        "": "outputs: no such folder; name a run folder",
        "out=x.html": "folders: none given; name a run, or a folder of some",
        "nowhere": "nowhere: no such folder; name a run folder",
        "file": "file: no such folder",
        "it nowhere": "nowhere: no such folder",
        "empty": "empty: contains no run; a run folder of ddpm-train has .hydra/config.yaml and metrics.csv",
        "it --verbose": "--verbose: no such option; ddpm-report takes folders and out=",
        "it out=page.csv": "out=page.csv: must be a file that ends in .html",
        "it out=": "out=: must be a file that ends in .html",
        "it --out": "out=: must be a file that ends in .html",
        "it out=file/page.html": "out=file/page.html: file is not a folder; name another file",
        "it out=/proc/page.html": "out=/proc/page.html: cannot be written",
        f"it out={'x' * 300}.html": f"out={'x' * 300}.html: cannot be written (File name too long)",
        "it format=pdf": "format=pdf: no such folder",
    }.items():
        assert_refused(run("report", *words.split()), message)
        assert sorted(tmp_path.rglob("*")) == names


def test_missing_plotly_is_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "it")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert_refused(run("report", "it"), "plotly: is needed for the plots; pip install 'ddpm-cli[report]'")
    assert not (tmp_path / "it/report.html").exists()


def test_help_shows_the_usage(run: Run) -> None:
    for word in ("--help", "-h"):
        result = run("report", word)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("ddpm-report compares runs")
        assert "out=page.html" in result.out


def test_report_does_not_import_torch_or_hydra() -> None:
    code = "import sys, ddpm_cli.report.page; sys.exit(bool({'torch', 'hydra', 'matplotlib'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
