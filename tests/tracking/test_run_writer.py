"""Checkpoints that are written in a thread while training continues."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.files import NoRoom
from ddpm_cli.tracking import run_writer
from ddpm_cli.tracking.run_writer import RunWriter
from ddpm_cli.tracking.timeline import new_timeline
from tests.conftest import TINY, composed


class Disk:
    """A slow disk: a write waits for `go`, and may fail."""

    def __init__(self) -> None:
        self.go, self.written = threading.Event(), list[dict[str, Any]]()
        self.error: Exception | None = None

    def save(self, folder: Path, state: dict[str, Any]) -> Path:
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        self.written.append(state)
        return folder


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(run_writer, "save_checkpoint", disk.save)
    return disk


@pytest.fixture
def writer(tmp_path: Path, disk: Disk) -> Iterator[RunWriter]:
    writer = RunWriter(composed(*TINY), tmp_path, 0, new_timeline(composed(*TINY).train, 20), background=True)
    yield writer
    disk.go.set()
    writer.close()


def test_state_is_that_of_the_call(writer: RunWriter, disk: Disk) -> None:
    weight = torch.ones(3)
    writer.checkpoint({"step": 1, "model": {"w": weight}, "classes": ["a"]})
    weight.zero_()  # the next step of the training
    assert disk.written == []
    disk.go.set()
    writer.wait()
    assert disk.written[0]["model"]["w"].tolist() == [1, 1, 1]
    assert disk.written[0]["classes"] == ["a"]


def test_one_is_written_at_a_time_and_in_order(writer: RunWriter, disk: Disk) -> None:
    writer.checkpoint({"step": 1})
    threading.Timer(0.05, disk.go.set).start()
    writer.checkpoint({"step": 2})
    assert disk.written[0] == {"step": 1}
    writer.wait()
    assert [state["step"] for state in disk.written] == [1, 2]


def test_error_is_raised_once_by_the_next_wait(writer: RunWriter, disk: Disk) -> None:
    disk.error = NoRoom(Path("x"), 3)
    disk.go.set()
    writer.checkpoint({"step": 1})
    with pytest.raises(NoRoom):
        writer.wait()
    disk.error = None
    writer.checkpoint({"step": 2})
    writer.wait()
    assert disk.written == [{"step": 2}]


def test_close_completes_the_checkpoint(tmp_path: Path, disk: Disk) -> None:
    writer = RunWriter(composed(*TINY), tmp_path, 0, new_timeline(composed(*TINY).train, 20), background=True)
    writer.checkpoint({"step": 1})
    threading.Timer(0.05, disk.go.set).start()
    writer.close()
    assert disk.written == [{"step": 1}]
