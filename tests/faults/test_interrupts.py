"""Ctrl-C at random moments of a command: one line, exit status 130, and nothing half-made."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import TIMEOUT, temporary_files

PRESSES = 200
"""Number of trials of each command with --full."""
SPAN = (0.1, 6.0)
"""Seconds after the start. Before, Python itself is starting, and handles Ctrl-C by a traceback of its own."""
COMMANDS = {
    "train": ["out=made"],
    "sample": ["ckpt={run}", "n=64", "device=cpu", "out=made"],
    "evaluate": ["ckpt={run}", "metrics=[nll]", "split=train", "n=8", "device=cpu", "out=made"],
    "export": ["ckpt={run}", "format=safetensors", "out=made"],
    "forward": ["dataset=digits", "out=made"],
    "report": ["{run}", "out=made.html"],
}
QUICK = {"train": 1, "sample": 1}
"""Number of trials without --full."""


@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_command_ends_at_once(
    command: str,
    small: list[str],
    undisturbed: Callable[..., Path],
    full: bool,
    tally: Callable[[str], Callable[[], None]],
) -> None:
    trials = PRESSES if full else QUICK.get(command, 0)
    if trials == 0:
        pytest.skip("only with --full")
    survived = tally("commands interrupted")
    words = [word.format(run=undisturbed()) for word in COMMANDS[command]]
    words += [*small, "train.steps=100000"] if command == "train" else []
    rng = random.Random(command)
    for trial in range(trials):
        moment = rng.uniform(*SPAN)
        code, err = _press(command, [word.replace("made", f"made{trial}") for word in words], moment)
        if code == 0:  # it ended before
            survived()
            continue
        assert code == 130, (moment, err)
        last = err.strip().splitlines()[-1]
        assert last.startswith(f"ddpm-{command}: "), (moment, err)
        assert "interrupted" in last or "SIGINT: stopped after step" in last, (moment, err)
        assert "Traceback" not in err, (moment, err)
        assert not temporary_files(Path.cwd())
        survived()


def _press(command: str, words: list[str], moment: float) -> tuple[int, str]:
    """Start a command, send it SIGINT after `moment` seconds, and return its exit status and stderr."""
    script = Path(sys.executable).with_name(f"ddpm-{command}")
    process = subprocess.Popen(
        [str(script), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, err
