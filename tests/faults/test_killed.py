"""SIGKILL at any moment, also while a checkpoint is written: the run resumes bit for bit."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.checkpoints.run_checkpoints import newest_valid_checkpoint
from tests.faults.processes import Process, assert_same_run, running, temporary_files, train_to_end

OVERRIDES = [
    ["model.dropout=0.2", "model.self_condition=true", "conditioning=class", "train.ema_start=10"],
    ["train.precision=fp16", "train.accumulate=2", "train.optimizer=adamw"],
    ["timestep_sampler=loss_second_moment", "timestep_sampler.history=1", "schedule=cosine", "schedule.timesteps=4"],
    ["train.precision=bf16", "train.milestone_every=3", "checkpoint.keep_last=1", "checkpoint.keep_every=10"],
    ["train.lr_decay=cosine", "train.milestone_every=1", "train.steps=30", "checkpoint.keep_last=2"],
]
KILLS = 5
"""Number of kills per run."""


@pytest.mark.parametrize("trial", range(2))
@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda overrides: overrides[0])
def test_killed_run_resumes_bit_for_bit(
    overrides: list[str],
    trial: int,
    small: list[str],
    undisturbed: Callable[..., Path],
    full: bool,
    tally: Callable[[str], Callable[[], None]],
) -> None:
    if not full and (overrides is not OVERRIDES[0] or trial > 0):
        pytest.skip("only with --full")
    survived = tally("runs killed and resumed bit for bit")
    rng = random.Random(f"{overrides}{trial}")
    folder = Path("run").absolute()
    args = [*{word.split("=")[0]: word for word in [*small, *overrides]}.values(), "out=run"]
    for kill in range(KILLS if full else 2):
        with running(*args, module="tests.faults.slow_writes") as process:
            if not _kill(process, folder, rng, while_writing=kill % 2 == 1):
                break  # it ended before the kill
        _assert_valid_checkpoints(folder)
        survived()
        args = ["resume=run"]
    train_to_end("resume=run")
    assert_same_run(folder, undisturbed(*overrides))


def _kill(process: Process, folder: Path, rng: random.Random, while_writing: bool) -> bool:
    """Kill the process at a random moment of its training; return False if it ended first."""
    size = (folder / "train.log").stat().st_size if (folder / "train.log").exists() else 0
    log = folder / "train.log"
    process.wait_for(lambda: log.exists() and log.stat().st_size > size and (folder / "checkpoints/last.pt").exists())
    time.sleep(rng.uniform(0, 0.9))
    if while_writing:
        process.wait_for(lambda: temporary_files(folder / "checkpoints"))
        time.sleep(rng.uniform(0, 0.03))
    process.popen.kill()
    code, _ = process.wait()
    return code == -9


def _assert_valid_checkpoints(folder: Path) -> None:
    """Check that the newest checkpoint and last.pt are valid."""
    newest_valid_checkpoint("resume", folder)
    load_checkpoint("ckpt", folder / "checkpoints" / "last.pt")
