"""A table of 20 GB, in a sparse file: a second start neither copies nor hashes it."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.data import decoding, image_folder, table
from ddpm_cli.data.table import Table, fingerprint
from tests.conftest import composed

COUNT, SIDE = 2000, 1828
BYTES = COUNT * 3 * SIDE**2  # 20 GB


def anonymous_memory() -> int:
    """Return the bytes that this process uses besides mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_second_start_with_a_table_of_20_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "0.png")
    for i in range(1, COUNT):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    more = [f"dataset.root={tmp_path}", f"dataset.image_size={SIDE}", "dataset.test_fraction=0"]
    dataset = composed("dataset=image_folder", *more).dataset

    def sparse(table: Path, *_: object) -> list[int]:
        with table.open("wb") as stream:
            stream.truncate(BYTES)
        return list(range(COUNT))

    monkeypatch.setattr(decoding, "_decode_into", sparse)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 0, 2**40))
    monkeypatch.setattr(table, "fingerprint", lambda examples: "the first start has computed it")
    image_folder.read_image_folder(dataset, True, tmp_path / "cache")

    before, started = anonymous_memory(), time.monotonic()
    examples = image_folder.read_image_folder(dataset, True, tmp_path / "cache")
    batch = Table(examples, False, 0, torch.device("cpu")).batch(1, 2)
    assert time.monotonic() - started < 10  # half a second on an idle core
    assert fingerprint(examples) == "the first start has computed it"
    assert batch.x0.shape == (2, 3, SIDE, SIDE)
    assert anonymous_memory() - before < 2**29
    assert np.asarray(examples.values).nbytes == BYTES
