"""Shell completion: the candidates for a line, the scripts of Hydra, and completion in bash."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SCHEMAS, Result

Run = Callable[..., Result]

COMPLETED = {
    "ddpm-train sche": ["schedule=", "schedule."],
    "ddpm-train schedule=": ["constant", "cosine", "edm", "flow", "linear", "quadratic", "sigmoid"],
    "ddpm-train schedule=co": ["constant", "cosine"],
    "ddpm-train train.ba": ["train.batch_size="],
    "ddpm-train experiment=annotated model=d": ["ddpm_cifar10", "ddpmpp", "dit_b", "dit_s", "dit_tiny"],
    "ddpm-train -m loss=h": ["huber", "hybrid"],
    "ddpm-sample sampler=d": ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m"],
    "ddpm-export form": ["format="],
    "ddpm-import dataset=dig": ["digits"],
    "ddpm-forward dataset=dig": ["digits"],
    "ddpm-evaluate spl": ["split="],
    "ddpm-train expe": ["experiment="],
    "ddpm-train train.optimizer=": ["adam", "adamw", "muon"],
    "ddpm-train optimizer=ad": ["adam", "adamw"],
    "ddpm-train dataset.fl": ["dataset.flip="],
    "ddpm-train dataset.flip=": ["false", "true"],
    "ddpm-evaluate metrics=fid,n": ["fid,nll"],
    "ddpm-train --c": ["--cfg", "--config-dir", "--config-name", "--config-path"],
    "ddpm-sample ckpt=outp": ["outputs/"],
    "ddpm-sample ckpt=outputs/train/.": [],
    "ddpm-train resume=la": ["latest"],
    "ddpm-train schema": [],
    "ddpm-sample cla": ["class="],
    "ddpm-sample sampler_": [],
}


@pytest.mark.parametrize("line", COMPLETED)
def test_candidates_for_a_line(run: Run, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("outputs/train").mkdir(parents=True)
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    result = run(line.split()[0].removeprefix("ddpm-"), "-sc", "query=bash")
    assert (result.code, result.err) == (0, "")
    offered = [word.rpartition("=")[2] or word for word in result.out.split()]
    assert offered == sorted(COMPLETED[line])


@pytest.mark.parametrize("command", SCHEMAS)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_script_is_printed(run: Run, command: str, shell: str) -> None:
    result = run(command, "-sc", f"install={shell}")
    assert (result.code, result.err) == (0, "")
    assert f"ddpm-{command}" in result.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_a_line(tmp_path: Path) -> None:
    """Run the line in the README that installs completion, and check what bash offers when Tab is pressed."""
    script = """
eval "$(ddpm-train -sc install=bash)"
complete -p ddpm-train
COMP_LINE="ddpm-train schedule=c"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1
hydra_bash_completion
echo "${COMPREPLY[@]}"
"""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    installed, offered = result.stdout.splitlines()
    assert "hydra_bash_completion" in installed
    assert offered.split() == ["schedule=constant", "schedule=cosine"]
