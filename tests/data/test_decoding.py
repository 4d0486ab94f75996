"""Images are decoded by threads or by processes, with the same results."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.data import decoding
from ddpm_cli.data.decoding import decode_image, in_processes, in_threads
from ddpm_cli.data.image_folder import read_image_folder
from ddpm_cli.errors import Failure, UserError
from tests.conftest import composed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

COUNT = 150


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Images of different grey levels, one of which is broken."""
    paths = [tmp_path / "images" / f"{i:03}.png" for i in range(COUNT)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.new("L", (8, 8), i).save(path)
    paths[100].write_bytes(b"no image")
    return paths


def test_processes_decode_in_order(files: list[Path]) -> None:
    decode = partial(decode_image, height=8, width=8, channels=1)
    results = list(in_processes(decode, files, 64))
    assert len(results) == COUNT
    assert [int(result[0, 0, 0]) for result in results if isinstance(result, np.ndarray)] == [
        i for i in range(COUNT) if i != 100
    ]
    threads = list(in_threads(decode, files))
    assert isinstance(threads[100], Exception)
    assert results[100] == decoding.one_line(threads[100])


def test_table_is_the_same_by_processes(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = files[0].parent
    config = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=8", "dataset.channels=1"]
    dataset = composed(*config, "dataset.test_fraction=0", "dataset.skip_broken=true").dataset
    by_threads = read_image_folder(dataset, True, tmp_path / "threads")
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 1)
    monkeypatch.setattr(decoding, "in_threads", None)
    by_processes = read_image_folder(dataset, True, tmp_path / "processes")
    assert len(by_processes.values) == COUNT - 1
    assert (by_processes.values == by_threads.values).all()
    with pytest.raises(UserError, match=r"100\.png cannot be decoded \(UnidentifiedImageError: .*skip_broken=true"):
        read_image_folder(composed(*config, "dataset.test_fraction=0").dataset, True, tmp_path / "refused")
    assert not list((tmp_path / "refused").iterdir())


def test_process_killed_by_the_system_is_one_line(files: list[Path]) -> None:
    def killed(file: Path) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(file)

    with pytest.raises(Failure, match="a process that decodes images was ended by the system"):
        list(in_processes(killed, files, 64))


SLOW = """
import sys, time
from pathlib import Path
from ddpm_cli import __main__, errors
from ddpm_cli.cli import train
from ddpm_cli.data.decoding import in_processes
from ddpm_cli.files import atomic
import numpy as np, os

def decode(name):
    print(os.getpid(), flush=True)
    time.sleep(0.1)
    return np.zeros(1, np.uint8)

def main():
    with atomic(Path("table"), 1) as partial:
        partial.touch()
        list(in_processes(decode, range(10000), 1))

train.main = main
sys.argv = ["ddpm-train"]
__main__.train()
"""


@pytest.mark.slow  # the processes look for their parent every five seconds
def test_interrupted_decoding_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        workers = {int(process.stdout.readline())}
        assert list(tmp_path.iterdir())  # the partial table
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=30)  # which waits for the processes too: they hold the streams
    workers |= {int(line) for line in out.split()}
    assert process.returncode == 130
    assert err == "ddpm-train: interrupted\n"
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
