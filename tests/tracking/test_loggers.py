"""TensorBoard and wandb logging, checked with TensorBoard's reader and wandb's records."""

import json
import logging
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.summary import scalar
from wandb.proto.wandb_internal_pb2 import Record

from ddpm_cli.evaluation.record import append
from ddpm_cli.tracking import loggers as module
from ddpm_cli.tracking.loggers import Loggers, open_loggers
from ddpm_cli.tracking.tensorboard import EventFile, TensorBoard
from tests.conftest import TINY, Result, composed
from tests.training.test_trainer import loop_of, rows_of

Run = Callable[..., Result]
SHORT = [*TINY, "train.steps=4", "train.milestone_every=2", "train.log_every=1"]
RECORD = {"step": 4, "metrics": {"fid": 3.5, "nll": 4.25}, "n": 100}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def train(folder: Path, *overrides: str, from_step: int | None = None) -> Path:
    """Train a run of SHORT in `folder`, or resume it from the checkpoint of a step."""
    with closing(loop_of(composed(*SHORT, *overrides), folder, from_step=from_step)) as loop:
        loop.run()
    return folder


def read_events(folder: Path) -> EventAccumulator:
    """Return what TensorBoard reads from a folder of event files."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_events(folder).Scalars(tag)]


def records(run: Path) -> list[Record]:
    """Return the records of the .wandb file of a run, after waiting for the last one."""
    deadline = time.monotonic() + 20
    while True:
        found = list(_records(run))
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _records(run: Path) -> Iterator[Record]:
    """Yield the records written so far: a log in the format of LevelDB after a header of seven bytes."""
    (file,) = run.glob("*.wandb")
    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield Record.FromString(parts)
            parts = b""


def history(run: Path) -> list[dict[str, Any]]:
    """Return the rows that wandb recorded for a run."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(run)
        if record.WhichOneof("record_type") == "history"
    ]


def offline_runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*"), key=lambda run: run.stat().st_ctime_ns)


def test_tensorboard_receives_rows_grids_and_config(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "logger=tensorboard")
    for column in ("loss", "lr", "grad_norm"):
        wanted = [(int(row["step"]), pytest.approx(float(row[column]))) for row in rows_of(folder)]
        assert points(folder / "tensorboard", f"train/{column}") == wanted
    events = read_events(folder / "tensorboard")
    assert [image.step for image in events.Images("samples")] == [2, 4]
    (folder / "last.png").write_bytes(events.Images("samples")[1].encoded_image_string)
    with Image.open(folder / "last.png") as ours, Image.open(folder / "samples/step_00000004.png") as grid:
        assert np.array_equal(np.asarray(ours.convert("L")), np.asarray(grid))
    (text,) = events.Tensors("config/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert yaml.safe_load("\n".join(line[4:] for line in lines))["train"]["steps"] == 4


def test_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "logger=tensorboard")
    before = points(folder / "tensorboard", "train/loss")
    train(folder, "logger=tensorboard", from_step=2)  # as after a kill before the checkpoint of step 4
    assert points(folder / "tensorboard", "train/loss") == before
    assert [step for step, _ in before] == [1, 2, 3, 4]


def test_events_are_written_without_closing_the_logger(tmp_path: Path) -> None:
    logger = TensorBoard(composed(*SHORT), tmp_path, 0)
    logger.row({"step": 7, "loss": 0.5})
    assert points(tmp_path / "tensorboard", "train/loss") == [(7, 0.5)]  # before the logger is closed
    logger.close()


def test_wandb_receives_rows_grids_and_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "clothes")
    folder = train(tmp_path / "run", "logger=[csv,wandb]")
    (run,) = offline_runs(folder)
    info = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"][-1]
    assert info.run_id == (folder / "wandb/id.txt").read_text().strip()
    assert (info.project, info.display_name) == ("clothes", "run")
    config = {item.key: json.loads(item.value_json) for item in info.config.update}
    assert config["train"]["steps"] == 4
    rows = history(run)
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in rows] == [pytest.approx(float(row["loss"])) for row in rows_of(folder)]
    assert [row["_step"] for row in rows if "samples/path" in row] == [2, 4]
    logged, drawn = run / "files" / rows[-1]["samples/path"], folder / "samples/step_00000004.png"
    with Image.open(logged) as ours, Image.open(drawn) as grid:
        assert np.array_equal(np.asarray(ours), np.asarray(grid))


def test_resumed_run_keeps_its_wandb_id(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "logger=wandb")
    train(folder, "logger=wandb", from_step=2)
    first, resumed = offline_runs(folder)
    # names are offline-run-<time>-<id>, with the suffix -1 in the same second
    assert first.name.split("-")[3] == resumed.name.split("-")[3]
    assert [row["_step"] for row in history(resumed)] == [3, 4]


@pytest.mark.parametrize("content", ["", "../../elsewhere", "a b", "x" * 200])
def test_invalid_wandb_id_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "run/wandb").mkdir(parents=True)
    (tmp_path / "run/wandb/id.txt").write_text(content)
    train(tmp_path / "run", "logger=wandb")
    assert len((tmp_path / "run/wandb/id.txt").read_text().strip()) == 16
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_loggers_do_not_change_a_run(tmp_path: Path) -> None:
    plain, logged = train(tmp_path / "plain"), train(tmp_path / "logged", "logger=[tensorboard,wandb]")
    ours, theirs = (torch.load(folder / "checkpoints/last.pt", weights_only=True) for folder in (logged, plain))
    for group in ("model", "ema"):
        assert all(torch.equal(ours[group][key], theirs[group][key]) for key in theirs[group])
    assert rows_of(logged) == rows_of(plain)
    name = "samples/step_00000004.png"
    assert (logged / name).read_bytes() == (plain / name).read_bytes()


def test_loggers_do_not_use_the_global_random_generators(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    before = state()
    opened = open_loggers(composed(*SHORT, "logger=[tensorboard,wandb]"), tmp_path, 0)
    assert len(opened.loggers) == 2
    opened.row({"step": 1, "loss": 0.5})
    opened.picture("samples", Image.new("L", (8, 8)), 1)
    opened.close()
    append(RECORD, tmp_path)
    assert state() == before


def test_csv_only_imports_no_logger(tmp_path: Path) -> None:
    train(tmp_path / "run", "logger=[]")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "loss.png",
        "metrics.csv",
        "samples",
    ]
    code = "import sys, ddpm_cli.training.loop, ddpm_cli.evaluation.run_metrics; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"wandb", "tensorboard"} & {*result.stdout.split()}


class Fails:
    """A logger whose disk is full."""

    name = "tensorboard"

    def row(self, row: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device")

    picture = close = row


def test_failing_logger_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    working = TensorBoard(composed(*SHORT), tmp_path, 0)
    both = Loggers([Fails(), working])
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            both.row({"step": step, "loss": 0.5})
        both.close()
    assert [record.getMessage() for record in caplog.records] == [
        "logger=tensorboard: failed; the run continues without it (OSError: [Errno 28] No space left on device)"
    ]
    assert points(tmp_path / "tensorboard", "train/loss") == [(1, 0.5), (2, 0.5)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_disables_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EventFile(tmp_path)
    file.add(scalar("x", 1.0), step=1)
    file.close()
    monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(OSError, match="No space left"):
        EventFile(tmp_path).add(scalar("x", 1.0), step=2)


def test_run_continues_without_a_logger_that_cannot_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", "logger=tensorboard")
    assert "logger=tensorboard: failed" in caplog.text
    assert [row["step"] for row in rows_of(tmp_path / "run")] == ["1", "2", "3", "4"]


def test_evaluation_is_sent_to_tensorboard(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "logger=tensorboard")
    append(RECORD, folder)
    append({"step": 2, "metrics": {"fid": 7.5}}, folder)
    assert points(folder / "tensorboard/evaluations", "evaluation/fid") == [(4, 3.5), (2, 7.5)]
    assert points(folder / "tensorboard/evaluations", "evaluation/nll") == [(4, 4.25)]
    assert len(points(folder / "tensorboard", "train/loss")) == 4


def test_evaluation_is_sent_to_wandb_in_the_group_of_its_run(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "logger=wandb")
    append(RECORD, folder)
    _, run = offline_runs(folder)
    info = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"][-1]
    assert info.run_group == (folder / "wandb/id.txt").read_text().strip()
    assert info.job_type == "evaluation"
    (row,) = history(run)
    assert {key: value for key, value in row.items() if not key.startswith("_")} == {
        "evaluation/fid": 3.5,
        "evaluation/nll": 4.25,
    }
    assert row["_step"] == 4


def test_evaluation_is_sent_only_to_loggers_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "theirs").mkdir()
    append(RECORD, tmp_path / "run")
    (tmp_path / "run/tensorboard").symlink_to(tmp_path / "theirs")
    append(RECORD, tmp_path / "run")
    assert not list((tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["evaluations.jsonl", "tensorboard"]


def test_evaluation_is_recorded_if_a_logger_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/evaluations").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        append(RECORD, tmp_path)
    assert json.loads((tmp_path / "evaluations.jsonl").read_text()) == RECORD
    assert "tensorboard: did not receive this evaluation (FileExistsError" in caplog.text


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_missing_logger_package_is_reported_early(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    result = run("train", *TINY, f"logger={package}")
    assert result.code == 2
    assert result.err == f"ddpm-train: logger={package}: needs {package}; pip install 'ddpm-cli[log]'\n"
    assert not list(tmp_path.iterdir())


def test_logger_can_change_on_resume(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", *TINY, "train.steps=1", "logger=tensorboard", "out=here").code == 0
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    result = run("train", "resume=here", "train.steps=2")
    assert result.code == 2
    assert "logger=tensorboard: needs tensorboard" in result.err
    result = run("train", "resume=here", "train.steps=2", "logger=csv")
    assert result.code == 0, result.err


def test_wandb_never_asks_for_a_key(tmp_path: Path) -> None:
    """Check in a new process with a terminal: wandb reads its settings once, and would prompt on a terminal."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {"HOME": str(tmp_path)}
    code = "from ddpm_cli.cli.train import main; main()"
    command = [sys.executable, "-c", code, *TINY, "logger=wandb", "out=here"]
    parent, child = os.openpty()
    with os.fdopen(parent), os.fdopen(child) as terminal:
        result = subprocess.run(
            command,
            env=env,
            cwd=tmp_path,
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    assert result.returncode == 2
    assert result.stderr == "ddpm-train: logger=wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline\n"
    assert not (tmp_path / "here").exists()
