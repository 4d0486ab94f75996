"""A run in TensorBoard: event files in its tensorboard/, and what it was judged by in tensorboard/evaluations/.

Written here, event by event, and not by torch's SummaryWriter, whose thread turns a full disk into a traceback.
"""

import os
import textwrap
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL.Image import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from ddpm_cli.config import TrainConfig

FOLDER = "tensorboard"


class EventFile:
    """A new file of events in `folder`. Each event is flushed before the call returns; raise `OSError` on failure.

    If `first_step` is given, TensorBoard ignores the events of older files from that step on.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"  # read in the order of their names
        self._stream = (folder / name).open("xb")
        self._records = RecordWriter(self._stream)
        self._write(Event(file_version="brain.Event:2"))
        if first_step is not None:
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, what: Summary, step: int) -> None:
        """Write a scalar, an image or a text of a step."""
        self._write(Event(step=step, summary=what))

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._stream.flush()  # the run may be killed at any moment


class TensorBoard:
    """The logger of a run in `folder` that continues after `step`."""

    name = "tensorboard"

    def __init__(self, config: TrainConfig, folder: Path, step: int) -> None:
        self.file = EventFile(folder / FOLDER, first_step=step + 1)
        text = textwrap.indent(yaml.safe_dump(asdict(config), sort_keys=False), "    ")  # as Markdown's code
        self.file.add(summary.text("config", text), step)

    def row(self, row: Mapping[str, float]) -> None:
        """Log the numbers of a row of metrics.csv."""
        for key, value in row.items():
            if key != "step":
                self.file.add(summary.scalar(f"train/{key}", value), int(row["step"]))

    def picture(self, name: str, image: Image, step: int) -> None:
        """Log a gray or colour image."""
        formats = "HW" if image.mode == "L" else "HWC"
        self.file.add(summary.image(name, np.asarray(image), dataformats=formats), step)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def add_evaluation(record: Mapping[str, Any], run: Path) -> None:
    """Log the metrics in a line of evaluations.jsonl.

    They get a folder of their own, because TensorBoard stops reading a run's file once there is a newer one beside it.
    """
    with closing(EventFile(run / FOLDER / "evaluations")) as file:
        for name, value in record["metrics"].items():
            file.add(summary.scalar(f"evaluation/{name}", value), record["step"])
