"""What a user can get wrong: one line that names the key, exit status 2, nothing written, no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, Result
from tests.data.test_image_folder import paint

Run = Callable[..., Result]

TRAIN = {
    "trian.steps=3": "trian.steps: no such key; did you mean train.steps?",
    "datset=mnist": "datset: no such key; did you mean dataset?",
    "precision=bf16": "precision: no such key; did you mean train.precision?",
    "xyzzy=1": "xyzzy: no such key; --cfg job lists the keys",
    "+xyzzy=1": "xyzzy: no such key",
    "+train.xyzzy=1": "train.xyzzy: no such key",
    "loss.delta=2": "loss.delta: only loss=huber has this key",
    "sampler.eat=1": "sampler.eat: no such key; did you mean sampler.eta?",
    "dataset=imagenet": "dataset=imagenet: must be cifar10, digits, fashion_mnist, image_folder, mnist or swiss_roll",
    "schedule=exponential": "schedule=exponential: must be constant, cosine, linear, quadratic or sigmoid",
    "train.steps=many": "train.steps=many: must be a whole number",
    "train.steps=1.5": "train.steps=1.5: must be a whole number",
    "train.lr=fast": "train.lr=fast: must be a number",
    "dataset.flip=perhaps": "dataset.flip=perhaps: must be true or false",
    "train.betas=0.9": "train.betas=0.9: must be a list",
    "train=fast": "train=fast",
    "train.lr=0": "train.lr=0.0: must be in (0, 10]",
    "schedule.timesteps=0": "schedule.timesteps=0: must be in 1..100000",
    "dataset.image_size=30": "dataset.image_size=30: must divide by 4",
    "dataset.name=mnist": "dataset.name=mnist",
    "device=cuda": "device=cuda: torch sees no CUDA device here",
    "device=tpu": "device=tpu: must be auto, cpu, cuda",
    "resume=nowhere": "resume=nowhere: no such file or folder",
    "dataset=image_folder": "dataset.root=null",
    "dataset.image_size=[28,": "dataset.image_size=[28,: not readable",
    "dataset=null": "dataset=null: must be cifar10",
    "schedule=null": "schedule=null: must be constant",
    "device=cpu:": "device=cpu:: must be auto, cpu, cuda",
    "schedule=constant schedule.beta=0.5": "schedule=constant: with timesteps=1000 its alphas_cumprod ends",
    f"resume={'x' * 300}": "cannot be read (File name too long)",
    f"dataset=image_folder dataset.root={'x' * 300}": "cannot be read (File name too long)",
    "dataset=digits dataset.image_size=4096": "dataset.image_size=4096: 1500 images of that size take",
    "hydra.run.dir=taken/by/a/file": "taken/by/a/file: Not a directory",
    "--steps=3": "unrecognized arguments: --steps=3",
    "out=taken/by/a/file": "out=taken/by/a/file: cannot be created",
}


@pytest.mark.parametrize("override", TRAIN)
def test_training(run: Run, tmp_path: Path, override: str) -> None:
    (tmp_path / "taken").write_text("")
    if override.startswith("device=cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    tiny = TINY if override.startswith("out=") else []
    check(run("train", *tiny, *override.split()), TRAIN[override])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def check(result: Result, named: str) -> None:
    assert result.code == 2
    assert named in result.err
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err + result.out


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["trian.steps=3", "schedule=linear,cosine"], "trian.steps: no such key; did you mean train.steps?"),
        (["schedule=linear,cosmic"], "schedule=cosmic: must be"),
        (["train.lr=0.1,20"], "train.lr=20.0: must be in (0, 10]"),
        (["train.lr=0.1,0.2", "dataset=null"], "dataset=null: must be cifar10"),
        (["train.lr=0.1,0.2", "+xyzzy=1"], "xyzzy: no such key"),
        (["train.lr=0.1,0.2", "device=tpu"], "device=tpu: must be"),
        (["train.lr=0.1,0.2", "resume=nowhere"], "resume=nowhere: no such file"),
        (["train.lr=0.1,0.2", "out=here"], "out=here: the jobs of a sweep write to hydra.sweep.dir"),
    ],
)
def test_a_sweep_is_checked_before_its_first_job(run: Run, tmp_path: Path, overrides: list[str], named: str) -> None:
    check(run("train", "-m", *overrides), named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], "ckpt=: missing"),
        (["ckpt=nowhere"], "ckpt=nowhere: no such file or folder"),
        (["ckpt=empty"], "ckpt=empty: no checkpoint in this folder"),
        (["ckpt=text.pt"], "ckpt=text.pt: not a checkpoint"),
        (["ckpt=x", "n=0"], "n=0: must be in 1..10000000"),
        (["ckpt=x", "weights=best"], "weights=best: must be ema or model"),
        (["ckpt=x", "precision=int8"], "precision=int8: must be auto, fp32, bf16 or fp16"),
        (["ckpt=x", "sampler=euler"], "sampler=euler: must be"),
        (["ckpt=x", "sampler.steps=5"], "sampler.steps=5: choose a sampler too"),
        (["ckpt=x", "sampler=ddim", "sampler.eta=-1"], "sampler.eta=-1.0: must be in [0, 1]"),
        (["ckpt=x", "gif=maybe"], "gif=maybe: must be true or false"),
        (["ckpt=x", "m=3"], "m: no such key"),
    ],
)
def test_sampling(run: Run, tmp_path: Path, overrides: list[str], named: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    check(run("sample", *overrides), named)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.pt"]


def test_more_steps_than_the_run_has_timesteps(run: Run) -> None:
    assert run("train", *TINY, "train.steps=1", "out=here").code == 0
    result = run("sample", "ckpt=here", "sampler=ddim", "sampler.steps=51")
    check(result, "sampler.steps=51: must be in 1..50")
    assert not Path("outputs").exists()


def test_image_folders(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    ask = ["train", "dataset=image_folder", f"dataset.root={folder}", "dataset.test_fraction=0", *TINY[1:]]
    check(run(*ask), f"dataset.root={folder}: no images")
    paint(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    check(run(*ask), "bad.png cannot be decoded")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    result = run(*ask, "dataset.skip_broken=true", "train.steps=1")
    assert result.code == 0, result.err
    assert "skipped 1 of 2 images" in result.err


def test_tracebacks_come_back_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_cli.errors import UserError

    monkeypatch.setattr("tests.conftest.pytest.MonkeyPatch.delenv", lambda *_, **__: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match=r"train\.lr=0"):
        run("train", "train.lr=0")
