"""SIGKILL at any moment, in the middle of a checkpoint too: the run goes on as if nothing had been."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.checkpoints.run_checkpoints import newest_valid_checkpoint
from tests.faults.processes import Process, assert_same_run, partials, running, trained

KNOBS = [
    ["model.dropout=0.2", "model.self_condition=true", "conditioning=class", "train.ema_start=10"],
    ["train.precision=fp16", "train.accumulate=2", "train.optimizer=adamw"],
    ["timestep_sampler=loss_second_moment", "timestep_sampler.history=1", "schedule=cosine", "schedule.timesteps=4"],
    ["train.precision=bf16", "train.milestone_every=3", "checkpoint.keep_last=1", "checkpoint.keep_every=10"],
    ["train.lr_decay=cosine", "train.milestone_every=1", "train.steps=30", "checkpoint.keep_last=2"],
]
KILLS = 5
"""In a run."""


@pytest.mark.parametrize("trial", range(2))
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: knobs[0])
def test_killed_run_resumes_bit_for_bit(
    knobs: list[str],
    trial: int,
    small: list[str],
    undisturbed: Callable[..., Path],
    full: bool,
    tally: Callable[[str], Callable[[], None]],
) -> None:
    if not full and (knobs is not KNOBS[0] or trial > 0):
        pytest.skip("with --full")
    survived = tally("killed, and gone on bit for bit")
    moment = random.Random(f"{knobs}{trial}")
    folder = Path("run").absolute()
    words = [*{word.split("=")[0]: word for word in [*small, *knobs]}.values(), "out=run"]
    for kill in range(KILLS if full else 2):
        with running(*words, module="tests.faults.slow_writes") as process:
            if not _killed(process, folder, moment, in_a_write=kill % 2 == 1):
                break  # it had come to its end
        _assert_there_is_a_checkpoint(folder)
        survived()
        words = ["resume=run"]
    trained("resume=run")
    assert_same_run(folder, undisturbed(*knobs))


def _killed(process: Process, folder: Path, moment: random.Random, in_a_write: bool) -> bool:
    """Kill the process at a random moment of its training; False if that ended before."""
    begun = (folder / "train.log").stat().st_size if (folder / "train.log").exists() else 0
    log = folder / "train.log"
    process.wait_for(lambda: log.exists() and log.stat().st_size > begun and (folder / "checkpoints/last.pt").exists())
    time.sleep(moment.uniform(0, 0.9))
    if in_a_write:
        process.wait_for(lambda: partials(folder / "checkpoints"))
        time.sleep(moment.uniform(0, 0.03))
    process.popen.kill()
    code, _ = process.end()
    return code == -9


def _assert_there_is_a_checkpoint(folder: Path) -> None:
    """Whole, by its own name and as last.pt."""
    newest_valid_checkpoint("resume", folder)
    load_checkpoint("ckpt", folder / "checkpoints" / "last.pt")
