"""ddpm-export and ddpm-import: the files that they write, and that ddpm-sample and ddpm-evaluate read them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from diffusers import DDPMPipeline

from tests.conftest import TINY, TINY_POINTS, Result, train_into

Run = Callable[..., Result]

DDPM = [
    "dataset=digits",
    "dataset.image_size=32",
    "model=ddpm_cifar10",
    "model.width=8",
    "model.groups=4",
    "model.multipliers=[1,2]",
    "model.attention=[none,full]",
    "model.blocks=1",
    *TINY[4:],
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs of three steps: plain, classes, ddpm and points."""
    folder = tmp_path_factory.mktemp("runs")
    steps = ["train.steps=3", "train.log_every=1", "train.lr=1e-2", "train.warmup_steps=0"]
    train_into(folder / "plain", *TINY, *steps)
    train_into(folder / "classes", *TINY, *steps, "conditioning=class")
    train_into(folder / "ddpm", *DDPM, *steps)
    train_into(folder / "points", *TINY_POINTS, *steps)
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def draw_samples(run: Run, ckpt: Path, *more: str) -> np.ndarray:
    """Return three samples of a checkpoint, drawn by ddpm-sample."""
    out = Path(f"drawn{len(list(Path().iterdir()))}")
    result = run("sample", f"ckpt={ckpt}", "n=3", "npz=true", "seed=7", "device=cpu", f"out={out}", *more)
    assert result.code == 0, result.err
    with np.load(out / "samples.npz") as found:
        return np.asarray(found["points" if "points" in found else "images"])


@pytest.mark.parametrize("kind", ["plain", "classes", "points"])
@pytest.mark.parametrize("weights", ["ema", "model"])
def test_samples_from_safetensors_equal_those_of_the_run(
    run: Run, runs: Path, tmp_path: Path, kind: str, weights: str
) -> None:
    result = run("export", f"ckpt={runs / kind}", f"weights={weights}", "out=exported")
    assert result.code == 0, result.err
    assert files_in(tmp_path / "exported") == ["README.md", "model.safetensors", "samples.png"]
    (tmp_path / "x").mkdir()
    moved = (tmp_path / "exported/model.safetensors").rename(tmp_path / "x/renamed.safetensors")
    ours = draw_samples(run, runs / kind, f"weights={weights}")
    assert np.array_equal(draw_samples(run, moved, f"weights={weights}"), ours)
    other = "model" if weights == "ema" else "ema"
    result = run("sample", f"ckpt={moved}", f"weights={other}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"weights={other}: {moved} contains only the {weights} weights; use weights={weights}" in result.err


def test_exported_network_has_the_same_metrics(run: Run, runs: Path, tmp_path: Path) -> None:
    assert run("export", f"ckpt={runs / 'plain'}", "out=exported").code == 0
    for ckpt, out in {runs / "plain": "one", tmp_path / "exported": "other"}.items():
        result = run("evaluate", f"ckpt={ckpt}", "metrics=[nll]", "n=2", "device=cpu", f"out={out}")
        assert result.code == 0, result.err
    assert (tmp_path / "one/nll.csv").read_bytes() == (tmp_path / "other/nll.csv").read_bytes()


def test_model_card_shows_the_grid_of_the_exported_step(run: Run, runs: Path, tmp_path: Path) -> None:
    assert run("export", f"ckpt={runs / 'plain'}", "out=exported").code == 0
    picture = runs / "plain/samples/step_00000003.png"
    assert (tmp_path / "exported/samples.png").read_bytes() == picture.read_bytes()
    assert "for 3 steps" in (tmp_path / "exported/README.md").read_text()


def test_diffusers_round_trip(run: Run, runs: Path, tmp_path: Path) -> None:
    result = run("export", f"ckpt={runs / 'ddpm'}", "format=diffusers", "out=pipeline")
    assert result.code == 0, result.err
    assert files_in(tmp_path / "pipeline") == [
        "README.md",
        "model_index.json",
        "samples.png",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert isinstance(DDPMPipeline.from_pretrained(tmp_path / "pipeline"), DDPMPipeline)
    result = run("import", "path=pipeline", "dataset=digits", "dataset.image_size=32", "out=back")
    assert result.code == 0, result.err
    assert files_in(tmp_path / "back") == ["model.safetensors"]
    all_steps = ["sampler=ddpm", "variance=fixed_small"]
    ours = draw_samples(run, runs / "ddpm", *all_steps)
    assert np.array_equal(draw_samples(run, tmp_path / "back", *all_steps), ours)
    result = run("evaluate", "ckpt=back", "metrics=[nll]", "n=2", "device=cpu", "out=measured")
    assert result.code == 0, result.err


def test_onnx_export_has_a_dynamic_batch_size(run: Run, runs: Path, tmp_path: Path) -> None:
    result = run("export", f"ckpt={runs / 'points'}", "format=onnx", "out=exported")
    assert result.code == 0, result.err
    assert files_in(tmp_path / "exported") == ["README.md", "model.onnx", "samples.png"]
    session = onnxruntime.InferenceSession(tmp_path / "exported/model.onnx")
    assert {one.name: one.shape for one in session.get_inputs()} == {"x": ["batch", 2], "t": ["batch"]}


REFUSED = {
    "export": ["ckpt=: missing"],
    "export ckpt=nowhere": ["ckpt=nowhere: no such file or folder"],
    "export ckpt={plain} format=gguf": ["format=gguf: must be safetensors, diffusers, onnx or checkpoint"],
    "export ckpt={plain} weights=best": ["weights=best: must be ema, model, or"],
    "export ckpt={plain} format=diffusers": ["model=unet: format=diffusers has no counterpart", "format=onnx"],
    "export ckpt={plain} out={plain}": ["already contains files; choose another folder"],
    "export ckpt={plain} sampler=ddim": ["sampler: no such key"],
    "import": ["path=: missing"],
    "import path=nowhere": ["path=nowhere: no such folder; name the folder of a DDPMPipeline"],
    "import path={plain}": ["path={plain}: no config.json; name the folder of a DDPMPipeline"],
    "import path={plain} format=onnx": ["format=onnx: must be diffusers"],
    "import path={plain} dataset=imagenet": ["dataset=imagenet: must be cifar10"],
    "train resume=x.safetensors": ["resume=x.safetensors: x.safetensors has weights but no optimizer"],
    "sample ckpt=x.safetensors": ["ckpt=x.safetensors: damaged, or no .safetensors file; name another"],
    "evaluate ckpt=x.safetensors": ["ckpt=x.safetensors: damaged, or no .safetensors file; name another"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_invalid_input_is_refused(run: Run, runs: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "x.safetensors").write_text("hello")
    command, *overrides = line.format(plain=runs / "plain").split()
    result = run(command, *overrides)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert all(part.format(plain=runs / "plain") in result.err for part in REFUSED[line])
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(("form", "package"), [("safetensors", "safetensors"), ("onnx", "onnxscript")])
def test_missing_package_is_named(
    run: Run, runs: Path, tmp_path: Path, form: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm_cli.export.export.find_spec", lambda name: None if name == package else name)
    result = run("export", f"ckpt={runs / 'plain'}", f"format={form}")
    assert result.code == 2
    assert result.err == f"ddpm-export: format={form}: needs {package}; pip install 'ddpm-cli[export]'\n"
    assert not list(tmp_path.iterdir())


def test_reading_without_safetensors_is_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").write_text("hello")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    result = run("sample", "ckpt=x.safetensors")
    assert result.code == 2
    assert result.err == "ddpm-sample: ckpt=x.safetensors: needs safetensors; pip install 'ddpm-cli[export]'\n"
