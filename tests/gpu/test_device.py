"""The checks of device_check.py that show whether ddpm-cli is right on a GPU. Skipped without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = [
    "samplers",
    "graph_exact",
    "syncs",
    "repeat_eager",
    "repeat_deterministic",
    "parts",
    "fp16",
    "cli_kill_resume",
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("device_check.py")
    command = [sys.executable, str(script), "--only", name, "--budget", "300", "--jobs", "1"]
    subprocess.run(command, env={**os.environ, "OUT": str(tmp_path), "CHECK_WORK": str(tmp_path / "work")}, check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[name]["status"] == "ok", results[name]
