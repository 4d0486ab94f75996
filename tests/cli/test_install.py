"""The console scripts installed from a wheel, in a clean environment and outside the repository."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY

REPOSITORY = Path(__file__).parents[2]


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
EXAMPLE = REPOSITORY / "docs/examples/plugin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "configs", "ddpm_cli"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    return wheel_of(source)


def wheel_of(source: Path) -> Path:
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(source.parent), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return max(source.parent.glob("*.whl"), key=lambda path: path.stat().st_mtime)


def environment_with(folder: Path, *wheels: Path) -> Path:
    """Return the bin folder of an environment with some wheels, which uses the dependencies of this environment."""
    venv.create(folder, with_pip=False)
    subprocess.run(
        [*PIP, "--python", str(folder / "bin/python"), "install", "--no-deps", *map(str, wheels)], check=True
    )
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Only the path is added. Python does not read the .pth files in that folder, such as that of an editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin"


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_with(tmp_path_factory.mktemp("install") / "venv", wheel)


@pytest.fixture(scope="module")
def with_plugin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment in which the example plugin is installed too."""
    tmp = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, tmp / "source")
    return environment_with(tmp / "venv", wheel, wheel_of(tmp / "source"))


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


SESSION = """
import sys
from importlib import import_module
from hydra.core.global_hydra import GlobalHydra

import ddpm_extras
assert "torch" not in sys.modules
for line in sys.stdin:
    command, *sys.argv[1:] = line.split()
    try:
        import_module(f"ddpm_cli.cli.{command}").main()
    except SystemExit as end:
        assert end.code == 0, line
    GlobalHydra.instance().clear()
"""
"""Runs a command for each line of its input, in one process that imports torch once."""

NETWORK = "model=residual model.width=8 model.blocks=1 schedule.timesteps=50 train.precision=fp32 device=cpu"
DATA = "dataset=npz_file dataset.root=data.npz dataset.image_size=8 dataset.held_out=20"
TRAINED = f"{DATA} {NETWORK} sampler.steps=3 train.steps=2 train.batch_size=8 train.samples=4"
LINES = f"""
train {TRAINED} sampler=midpoint out=run
train resume=run train.steps=3
sample ckpt=run n=2 out=a
sample ckpt=run n=2 sampler=midpoint sampler.last_step=x0 out=b
evaluate ckpt=run metrics=[mean_distance] n=10 out=measured
forward {DATA} out=noised
export ckpt=run format=safetensors out=exported
train -m {TRAINED} sampler=midpoint,ddim hydra.sweep.dir=swept
report swept
"""


@pytest.mark.slow  # tests/config loads plugins from folders, and the test above installs the wheel
def test_installed_plugin_is_used_by_all_commands(with_plugin: Path, scripts: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    session = subprocess.run(
        [with_plugin / "python", "-c", SESSION],
        input=LINES.strip(),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert session.returncode == 0, session.stderr
    assert (tmp_path / "b/grid.png").is_file()
    assert "mean_distance" in json.loads((tmp_path / "measured/evaluation.json").read_text())["metrics"]
    assert ",sampler," in (tmp_path / "swept/report.csv").read_text().partition("\n")[0]
    shown = call(with_plugin / "ddpm-train", "--help", "sampler=midpoint", cwd=tmp_path).stdout
    assert "last_step: euler  # euler, or x0" in shown
    wrong = call(with_plugin / "ddpm-train", "sampler=midpont", cwd=tmp_path).stderr
    assert "did you mean sampler=midpoint?" in wrong
    for checkpoint in ("run", "exported/model.safetensors"):
        refused = call(scripts / "ddpm-sample", f"ckpt={checkpoint}", cwd=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "belongs to the plugin ddpm-extras, which is not installed" in refused.stderr


def test_the_plugin_passes_its_own_tests_and_imports_the_api_alone(with_plugin: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    result = call(with_plugin / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    for file in EXAMPLE.rglob("*.py"):
        assert {*re.findall(r"^(?:from|import) (ddpm_cli[\w.]*)", file.read_text(), re.MULTILINE)} <= {"ddpm_cli.api"}


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
