"""Averages of other lengths of a small run, computed after it."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ddpm_cli
from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.checkpoints.loading import load_weights
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.errors import Stopped, UserError
from ddpm_cli.training.ema import PowerAverages
from ddpm_cli.training.trainer import Trainer
from tests.conftest import TINY_POINTS, Result, train_into

STEPS = 96
POINTS = [
    *TINY_POINTS,
    "train.milestone_every=8",
    "train.log_every=50",
    "train.lr=2e-3",
    "train.warmup_steps=0",
    "checkpoint.keep_last=2",
]
LENGTHS = [0.03, 0.05, 0.07, 0.15, 0.2]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, Weights]]:
    """Train a run whose averages of several lengths are also tracked directly; return its folder and these."""
    direct: list[PowerAverages] = []
    update = PowerAverages.update

    def also_directly(own: PowerAverages, network: Any, step: int, finite: torch.Tensor) -> None:
        if step == 1:
            direct[:] = [PowerAverages(LENGTHS, network)]
        update(own, network, step, finite)
        update(direct[0], network, step, finite)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PowerAverages, "update", also_directly)
        folder = tmp_path_factory.mktemp("averages") / "run"
        train_into(folder, *POINTS, f"train.steps={STEPS}", "train.ema_lengths=[0.05,0.1]")
    return folder, dict(zip(LENGTHS, direct[0].tensors, strict=True))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_into(tmp_path_factory.mktemp("without") / "run", *POINTS, "train.steps=8")


def weights_of(folder: Path, kind: str) -> Weights:
    return load_weights("ckpt", find_checkpoint("ckpt", str(folder)), kind).tensors


def distance(ours: Weights, theirs: Weights) -> float:
    """Return the norm of the difference as a fraction of that of `theirs`."""
    pairs = [(ours[name].double().flatten(), x.double().flatten()) for name, x in theirs.items()]
    a, b = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("length", LENGTHS)
def test_close_to_the_average_that_is_tracked_directly(
    length: float, trained: tuple[Path, dict[float, Weights]]
) -> None:
    """At most 4e-4 of the norm; the distance to the weights themselves is 9 times the error or more."""
    folder, direct = trained
    found, expected = weights_of(folder, f"ema:{length}"), direct[length]
    error = distance(found, expected)
    assert error < 4e-4
    assert distance(weights_of(folder, "model"), expected) > 9 * error
    assert all(x.dtype == torch.float32 for x in found.values())


def test_tracked_length_has_its_own_bits_up_to_rounding(trained: tuple[Path, dict[float, Weights]]) -> None:
    folder, direct = trained
    assert distance(weights_of(folder, "ema:0.05"), direct[0.05]) < 1e-6


def test_only_earlier_snapshots_are_used(trained: tuple[Path, dict[float, Weights]], tmp_path: Path) -> None:
    """A checkpoint of the middle of a run has the same weights before and after the rest of it."""
    folder, _ = trained
    milestone = RunFolder(folder).checkpoint(STEPS - 8)
    before = load_weights("ckpt", milestone, "ema:0.03").tensors
    RunFolder(folder).snapshot(STEPS).rename(tmp_path / "aside")
    after = load_weights("ckpt", milestone, "ema:0.03").tensors
    (tmp_path / "aside").rename(RunFolder(folder).snapshot(STEPS))
    assert all(torch.equal(x, after[name]) for name, x in before.items())


def test_messages(trained: tuple[Path, dict[float, Weights]], without: Path, run: Callable[..., Result]) -> None:
    folder, _ = trained
    for where, weights, message in [
        (folder, "ema:0.01", "11 snapshots before it represent relative lengths of 0.03 to 0.245; choose one of these"),
        (without, "ema:0.1", "has no averages to compute it from; set train.ema_lengths=[0.05,0.10] while training"),
        (folder, "ema:0.5", "must be ema, model, or the averaged weights of a relative length in [0.001, 0.28), as in"),
        (
            folder,
            "ema:1e-300",
            "must be ema, model, or the averaged weights of a relative length in [0.001, 0.28), as in",
        ),
        (folder, "ema:nan", "must be ema, model, or the averaged weights of a relative length in [0.001, 0.28), as in"),
        (folder, "emma", "must be ema, model, or the averaged weights of a relative length in [0.001, 0.28), as in"),
    ]:
        result = run("sample", f"ckpt={where}", f"weights={weights}", "device=cpu")
        assert result.code == 2
        assert result.err.startswith(f"ddpm-sample: weights={weights}: ")
        assert message in result.err
        assert result.err.count("\n") == 1
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "value", ["[0.05]", "[0.05,0.05]", "[0.05,0.28]", "[0,0.1]", "[0.05,nan]", "0.05", "[1e-300,0.1]"]
)
def test_bad_lengths_are_refused(value: str, run: Callable[..., Result]) -> None:
    result = run("train", *POINTS, f"train.ema_lengths={value}", "out=run")
    assert result.code == 2
    assert result.err.startswith("ddpm-train: train.ema_lengths=")
    assert result.err.count("\n") == 1
    assert not Path("run").exists()


def test_lengths_cannot_change_on_resume(
    trained: tuple[Path, dict[float, Weights]], without: Path, run: Callable[..., Result]
) -> None:
    for folder, own in ((trained[0], "[0.05, 0.1]"), (without, "none")):
        result = run("train", f"resume={folder}", "train.ema_lengths=[0.1,0.2]", "train.steps=200")
        assert result.code == 2
        assert f"averages start with a run, and this one has {own}" in result.err


def test_a_run_may_stop_tracking_on_resume(run: Callable[..., Result]) -> None:
    run("train", *POINTS, "train.steps=8", "train.ema_lengths=[0.05,0.1]", "out=run")
    result = run("train", "resume=run", "train.ema_lengths=null", "train.steps=16")
    assert result.code == 0, result.err
    assert [*RunFolder(Path("run")).snapshots_by_step()] == [8]
    with pytest.raises(UserError, match="has no averages"):
        weights_of(Path("run"), "ema:0.1")


def test_abandoned_future_is_not_used(run: Callable[..., Result]) -> None:
    """A run that goes back and learns faster has other snapshots, and those of before are moved aside."""
    more = [*POINTS, "train.milestone_every=4", "checkpoint.keep_last=null", "train.ema_lengths=[0.05,0.1]"]
    assert run("train", *more, "train.steps=16", "out=run").code == 0
    here, paths = RunFolder(Path("run")), RunFolder(Path("run")).snapshots_by_step()
    before = {step: path.read_bytes() for step, path in paths.items()}
    result = run("train", f"resume={here.checkpoint(8)}", "train.lr=1e-2")
    assert result.code == 0, result.err
    after = {step: path.read_bytes() for step, path in here.snapshots_by_step().items()}
    assert [*after] == [*before] == [4, 8, 12, 16]
    assert [after[step] == before[step] for step in after] == [True, True, False, False]


def test_sweep_draws_a_curve(trained: tuple[Path, dict[float, Weights]], run: Callable[..., Result]) -> None:
    folder, _ = trained
    common = [f"ckpt={folder}", "metrics=[nll]", "n=8", "device=cpu", "hydra.sweep.dir=sweep"]
    result = run("evaluate", "-m", *common, "weights=model,ema:0.03,ema:0.10")
    assert result.code == 0, result.err
    with Path("sweep/averages.csv").open(newline="") as stream:
        rows = [
            (row["weights"], row["metric"], float(row["low"]) < float(row["value"])) for row in csv.DictReader(stream)
        ]
    assert rows == [("model", "nll", True), ("ema:0.03", "nll", True), ("ema:0.1", "nll", True)]
    assert Path("sweep/averages.png").is_file()
    assert not Path("sweep/tradeoff.csv").exists()


def test_export_and_init_take_an_average(
    trained: tuple[Path, dict[float, Weights]], run: Callable[..., Result]
) -> None:
    folder, _ = trained
    result = run("export", f"ckpt={folder}", "weights=ema:0.07", "out=exported")
    assert result.code == 0, result.err
    exported = load_weights("ckpt", Path("exported/model.safetensors"), "ema:0.07")
    assert distance(exported.tensors, weights_of(folder, "ema:0.07")) == 0
    assert "ema:0.07" in Path("exported/README.md").read_text()
    result = run("sample", "ckpt=exported", "n=2", "device=cpu")
    assert "contains only the ema:0.07 weights; use weights=ema:0.07" in result.err
    result = run("sample", f"ckpt={folder}", "guidance_scale=2", "guidance.guide=exported", "n=2", "device=cpu")
    assert "contains only the ema:0.07 weights; name the run that it came from" in result.err
    result = run("train", *POINTS, "init=exported", "train.steps=1", "out=other")
    assert "contains only the ema:0.07 weights; use init_weights=ema:0.07" in result.err
    result = run("train", *POINTS, f"init={folder}", "init_weights=ema:0.07", "train.steps=1", "out=new")
    assert result.code == 0, result.err
    assert f"ema:0.07 of step {STEPS}" in Path("new/train.log").read_text()
    result = run("export", f"ckpt={folder}", "weights=ema:0.07", "format=checkpoint", "out=file")
    assert result.err.startswith("ddpm-export: weights=ema:0.07: has no effect with format=checkpoint")


def test_python_loads_an_average(trained: tuple[Path, dict[float, Weights]]) -> None:
    folder, direct = trained
    model = ddpm_cli.load(folder, weights="ema:0.15", device="cpu")
    assert distance(dict(model.network.named_parameters()), direct[0.15]) < 4e-4


def test_killed_between_a_snapshot_and_its_checkpoint(run: Callable[..., Result]) -> None:
    """The resumed run moves the snapshot aside and writes the same one again."""
    more = [*POINTS, "checkpoint.keep_last=null", "train.ema_lengths=[0.05,0.1]", "train.steps=16", "out=run"]
    assert run("train", *more).code == 0
    here = RunFolder(Path("run"))
    before = here.snapshot(16).read_bytes()
    here.checkpoint(16).unlink()
    here.last_checkpoint.unlink()
    result = run("train", "resume=run/checkpoints/step_00000008.pt")
    assert result.code == 0, result.err
    assert here.snapshot(16).read_bytes() == before
    assert [path.read_bytes() for path in here.snapshots.glob("superseded_*/step_00000016.pt")] == [before]


def test_a_stopped_run_has_snapshots_of_milestones_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The averages of its last step are in the checkpoint, and count as the newest snapshot."""
    step = Trainer.train_step

    def stops_at_ten(trainer: Trainer) -> Any:
        if trainer.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stops_at_ten)
    with pytest.raises(Stopped, match="stopped after step 10 of 16"):
        train_into(tmp_path / "run", *POINTS, "train.steps=16", "train.ema_lengths=[0.05,0.1]")
    assert [*RunFolder(tmp_path / "run").snapshots_by_step()] == [8]
    tracked = load_checkpoint("ckpt", RunFolder(tmp_path / "run").last_checkpoint)["averages"][1]
    assert distance(weights_of(tmp_path / "run", "ema:0.1"), tracked) < 1e-6
