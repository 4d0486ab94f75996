"""`init=`: a new run that starts from the weights of another one, on other data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import TINY, Result, train_into

Run = Callable[..., Result]

NETWORK = ("model=", "model.", "schedule.")
OTHERS = [word for word in TINY if not word.startswith(NETWORK)]
"""Overrides without those of the network."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    more = ["train.steps=4", "train.lr=0.01", "train.ema_decay=0.5", "schedule=linear", "prediction=eps"]
    return train_into(folder, *TINY, *more, "conditioning=class")


def checkpoint(folder: Path | str, step: int) -> dict[str, Any]:
    return dict(torch.load(Path(folder, f"checkpoints/step_{step:08d}.pt"), weights_only=True))


@pytest.mark.parametrize("kind", ["ema", "model"])
def test_weights_and_process_are_those_of_the_other_run(kind: str, base: Path, run: Run) -> None:
    result = run("train", *OTHERS, f"init={base}", f"init_weights={kind}", "train.steps=1", "train.seed=5", "out=run")
    assert result.code == 0, result.err
    old, new = checkpoint(base, 4), checkpoint("run", 0)
    for name, x in old[kind].items():
        assert torch.equal(new["model"][name], x)
        assert torch.equal(new["ema"][name], x)
    for key in ("model", "schedule", "prediction", "conditioning"):
        assert new["config"][key] == old["config"][key]
    assert (new["step"], new["optimizer"]) == (0, {})
    count = len(old[kind])
    line = f"weights    {kind} of step 4 of {base}: {count} of {count} tensors\n"
    assert line in result.err
    assert line in Path("run/train.log").read_text()
    assert new["config"]["init"] is None  # checkpoints contain no paths
    assert yaml.safe_load(Path("run/.hydra/config.yaml").read_text())["init"] == str(base)
    assert run("train", "resume=run", "train.steps=2").code == 0


def test_tensors_of_other_shapes_start_anew(base: Path, run: Run) -> None:
    result = run(
        "train", *OTHERS, f"init={base}", "dataset.channels=3", "conditioning=none", "train.steps=1", "out=run"
    )
    assert result.code == 0, result.err
    old, new = checkpoint(base, 4)["ema"], checkpoint("run", 0)["model"]
    anew = [name for name, x in new.items() if name not in old or not torch.equal(x, old[name])]
    assert 0 < len(anew) < 5
    assert all(new[name].shape != old[name].shape for name in anew)
    assert f"{len(new) - len(anew)} of {len(new)} tensors\n           new: {', '.join(anew)}\n" in result.err


def test_typed_network_is_kept(base: Path, run: Run) -> None:
    assert run("train", *OTHERS, f"init={base}", "model.dropout=0.1", "train.steps=1", "out=a").code == 0
    assert checkpoint("a", 0)["config"]["model"] == {**checkpoint(base, 4)["config"]["model"], "dropout": 0.1}
    assert run("train", *TINY, "model.width=16", f"init={base}", "train.steps=1", "out=b").code == 0
    assert checkpoint("b", 0)["config"]["model"]["width"] == 16


def test_exported_weights_and_the_newest_run(base: Path, run: Run, tmp_path: Path) -> None:
    assert run("export", f"ckpt={base}", "format=safetensors", "out=exported").code == 0
    assert run("train", *OTHERS, "init=exported", "train.steps=1", "out=outputs/train/x/a").code == 0
    result = run("train", *OTHERS, "init=latest", "train.steps=1", "out=c")
    assert "init=latest is outputs/train/x/a" in result.err
    assert result.code == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=none"], "init=none: "),
        (["init={base}", "init_weights=best"], "init_weights=best: must be ema, model, or"),
        (["init={base}", "resume={base}"], "init={base}: starts a new run, and resume= continues one"),
        (
            ["init={base}", "model=mlp", "dataset=swiss_roll", "conditioning=none"],
            "init={base}: no tensor fits model=mlp",
        ),
        (["init={base}/../../wrong.pt"], "init={base}/../../wrong.pt: "),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str, base: Path, run: Run, tmp_path: Path) -> None:
    typed = [override.format(base=base) for override in overrides]
    result = run("train", *typed, "device=cpu", "out=run")
    assert (result.code, result.err.splitlines()[-1].startswith(f"ddpm-train: {message.format(base=base)}")) == (
        2,
        True,
    )
    assert not (tmp_path / "run").exists()
