"""The console scripts installed from a wheel, in a clean environment and outside the repository."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TINY

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with the wheel, which uses the dependencies of this environment."""
    tmp = tmp_path_factory.mktemp("install")
    source = tmp / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "configs", "ddpm_cli"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp.glob("*.whl")
    venv.create(tmp / "venv", with_pip=False)
    python = tmp / "venv/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    (site,) = (tmp / "venv/lib").glob("python*/site-packages")
    # Only the path is added. Python does not read the .pth files in that folder, such as that of an editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python.parent


def call(script: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run([script, *args], cwd=cwd, env=environment, capture_output=True, text=True)


def test_train_and_sample_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    place = call(scripts / "python", "-c", "import ddpm_cli; print(ddpm_cli.__file__)", cwd=tmp_path)
    assert str(scripts.parent) in place.stdout
    result = call(scripts / "ddpm-train", *TINY, "train.steps=2", "out=here", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = call(scripts / "ddpm-sample", "ckpt=here", "n=2", "out=new", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new/grid.png").is_file()


@pytest.mark.slow
def test_forward_and_report_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 128).save(tmp_path / "gray.png")
    assert call(scripts / "ddpm-train", *TINY, "train.steps=2", "out=here", cwd=tmp_path).returncode == 0
    result = call(scripts / "ddpm-forward", "image=gray.png", "out=noised", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = call(scripts / "ddpm-report", "here", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "noised/forward.png").is_file()


def test_misspelled_key_is_one_line_on_stderr(scripts: Path, tmp_path: Path) -> None:
    result = call(scripts / "ddpm-train", "trian.steps=3", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "ddpm-train: trian.steps: no such key; did you mean train.steps?\n"
    assert not list(tmp_path.iterdir())


def restore_interrupts() -> None:
    """Restore the default handler of SIGINT, because background jobs of a shell inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_interrupt_keeps_the_last_checkpoint(scripts: Path, tmp_path: Path) -> None:
    args = [*TINY, "train.steps=100000", "train.milestone_every=5", "out=here"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [scripts / "ddpm-train", *args],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_interrupts,
    )
    try:
        deadline = time.monotonic() + 180
        while not (tmp_path / "here/checkpoints/last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "ddpm-train: SIGINT: stopped after step " in err
    assert "ddpm-train resume=here continues" in err
    result = call(scripts / "ddpm-sample", "ckpt=here", "n=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
