"""Steps with a non-finite loss: they are skipped and counted, and too many in a row end the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.checkpoints.format import load_checkpoint
from tests.faults.processes import assert_same_run, rows, running, train_to_end

Tally = Callable[[str], Callable[[], None]]


def tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [tensor for value in tree.values() for tensor in tensors(value)] if isinstance(tree, dict) else []


def assert_finite(checkpoint: Path) -> None:
    state = load_checkpoint("ckpt", checkpoint)
    found = [tensor for key in ("model", "ema", "optimizer", "timestep_sampler") for tensor in tensors(state[key])]
    assert len(found) > 100
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize(
    "overrides",
    [
        ["timestep_sampler=loss_second_moment", "timestep_sampler.history=1", "train.accumulate=2"],
        pytest.param(["train.precision=fp16"], marks=pytest.mark.slow),
    ],
    ids=lambda overrides: overrides[0],
)
def test_bad_step_is_skipped_and_counted(
    overrides: list[str], small: list[str], monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    survived = tally("non-finite steps skipped and counted")
    monkeypatch.setenv("DDPM_BAD_STEPS", "2,5-8,20")
    train_to_end(
        *small, *overrides, "train.max_bad_steps=5", "train.log_every=1", "out=run", module="tests.faults.bad_losses"
    )
    assert_finite(Path("run/checkpoints/last.pt"))
    skipped = {int(row["step"]): int(row["skipped"]) for row in rows(Path("run"))}
    assert [skipped[step] for step in (2, 3, 5, 6, 9, 20, 21, 40)] == [0, 1, 1, 2, 5, 5, 6, 6]
    assert [row["step"] for row in rows(Path("run")) if row["loss"] == "nan"] == ["3", "6", "7", "8", "9", "21"]
    survived()


def test_batch_norms_ignore_a_bad_step(small: list[str], monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    survived = tally("non-finite steps skipped and counted")
    monkeypatch.setenv("DDPM_BAD_STEPS", "2-5")
    plain = [word for word in small if not word.startswith("model")]
    overrides = ["model=conv", "model.width=4", "model.time_dim=4", "train.steps=8", "out=run"]
    train_to_end(*plain, *overrides, module="tests.faults.bad_losses")
    assert_finite(Path("run/checkpoints/last.pt"))
    survived()


@pytest.mark.slow
def test_too_many_bad_steps_end_the_run(
    small: list[str], undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    survived = tally("diverged runs stopped with a finite checkpoint")
    monkeypatch.setenv("DDPM_BAD_STEPS", "9,14-39")
    with running(*small, "train.max_bad_steps=10", "out=run", module="tests.faults.bad_losses") as process:
        code, lines = process.wait()
    assert code == 1
    undisturbed_rows = rows(undisturbed())
    last = lines[-1]
    assert last.startswith(
        "ddpm-train: step 24: the loss or the gradient was not finite in 10 steps in a row (train.max_bad_steps), "
        "all of them skipped; the last finite loss was "
    )
    assert 0.1 < float(last.split("last finite loss was ")[1].split()[0].rstrip(".")) < 2
    assert "Try a smaller train.lr, train.grad_clip=1 or train.precision=fp32" in last
    assert last.endswith("ddpm-train resume=run continues from its last checkpoint")
    assert_finite(Path("run/checkpoints/last.pt"))
    assert rows(Path("run"))[:2] == undisturbed_rows[:2]
    train_to_end("resume=run")
    end = rows(Path("run"))[-1]
    assert (end["step"], end["skipped"]) == ("40", "7")  # the last checkpoint is that of step 20
    survived()


@pytest.mark.slow
def test_diverging_learning_rate(small: list[str], tally: Tally) -> None:
    """Check a real divergence: the activations leave the range of half precision."""
    survived = tally("diverged runs stopped with a finite checkpoint")
    diverging = [
        "train.lr=10",
        "train.warmup_steps=0",
        "train.grad_clip=null",
        "train.precision=fp16",
        "train.steps=2000",
    ]
    with running(*small, *diverging, "out=run") as process:
        code, lines = process.wait()
    assert code == 1, lines
    assert "was not finite in 10 steps in a row" in lines[-1]
    assert_finite(Path("run/checkpoints/last.pt"))
    survived()


@pytest.mark.full
def test_resumed_run_continues_counting_bad_steps(
    small: list[str], undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """Check that the count of consecutive bad steps and the scaler of fp16 survive a resume."""
    survived = tally("non-finite steps skipped and counted")
    half = "train.precision=fp16"
    train_to_end(*small, half, "train.steps=20", "out=run")
    train_to_end("resume=run", "train.steps=40")
    assert_same_run(Path("run"), undisturbed(half))
    state = load_checkpoint("ckpt", Path("run/checkpoints/last.pt"))
    assert state["scaler"]["_growth_tracker"] > 0
    monkeypatch.setenv("DDPM_BAD_STEPS", "40-99")
    with running("resume=run", "train.steps=44", "train.max_bad_steps=8", module="tests.faults.bad_losses") as process:
        assert process.wait()[0] == 0
    with running("resume=run", "train.steps=60", "train.max_bad_steps=8", module="tests.faults.bad_losses") as process:
        code, lines = process.wait()
    assert code == 1
    assert "step 48: the loss" in lines[-1]
    survived()
