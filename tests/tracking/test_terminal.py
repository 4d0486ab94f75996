"""The status line and the bar of images."""

import io
import sys

import pytest

from ddpm_cli.tracking.terminal import ERASE_LINE, ImageBar, status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with status("reading the dataset"):
        assert terminal.getvalue() == "reading the dataset …\r"
    assert terminal.getvalue() == f"reading the dataset …\r{ERASE_LINE}"


def test_nothing_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with status("reading the dataset"), ImageBar(4, "samples") as bar:
        bar.reach(range(4))
    assert capsys.readouterr().err == ""


def test_bar_counts_images_within_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with ImageBar(10, "samples") as bar:
        reached = []
        for images, done in [(range(8), 0.5), (range(8), 1.0), (range(4), 0.5), (range(4, 8), 1.0), (range(8, 10), 1)]:
            bar.reach(images, done)  # the batch of 8 did not fit into the memory and is drawn again in two
            reached.append(bar.n)
    assert reached == [4, 8, 2, 8, 10]
    assert "samples:" in terminal.getvalue()
    assert "image" in terminal.getvalue()


def test_bar_is_shown_in_notebooks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", io)
    with ImageBar(4, "samples") as bar:
        bar.reach(range(4))
    assert "samples:" in capsys.readouterr().err
