"""Threads wait for a short time if other programs use the cores."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpm_cli.distributed import waiting
from ddpm_cli.distributed.waiting import OtherPrograms, busy_seconds, limit_busy_waiting


@pytest.mark.parametrize(
    ("cores", "environment", "spin_count"),
    [
        (0.1, {}, None),
        (0.9, {}, "1000"),
        (0.9, {"GOMP_SPINCOUNT": "7"}, "7"),
        (0.9, {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting(
    cores: float, environment: dict[str, str], spin_count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    others = OtherPrograms()
    monkeypatch.setattr(others, "busy_cores", lambda: cores)
    limit_busy_waiting(others)
    assert os.environ.get("GOMP_SPINCOUNT") == spin_count


STAT = """cpu  900 0 900 9000 0 0 0 0 0 0
cpu0 {} 10 20 5000 300 1 2 3 0 0
cpu99999 700 10 20 5000 300 1 2 3 0 0
intr 8885
"""


def test_only_own_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    (tmp_path / "stat").write_text(STAT.format(100))
    assert busy_seconds() == pytest.approx(136 / os.sysconf("SC_CLK_TCK"))


def test_no_stat_is_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STAT", tmp_path / "missing")
    assert OtherPrograms().busy_cores() == 0


@pytest.mark.skipif(not waiting.STAT.is_file(), reason="no /proc/stat")
def test_another_busy_program_is_noticed() -> None:
    others = OtherPrograms()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.5)
        busy = others.busy_cores()
        process.kill()
    assert busy > 0.3
