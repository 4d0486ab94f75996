"""Truncated and corrupted checkpoints: they are detected and named, and the newest valid one is used."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.faults.processes import assert_same_run, running

Run = Callable[..., Result]
Tally = Callable[[str], Callable[[], None]]


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def corrupted(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("damage", [truncated, corrupted])
def test_damaged_checkpoint_is_an_error(
    damage: Callable[[bytes, random.Random], bytes],
    run: Run,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
    full: bool,
    tally: Tally,
) -> None:
    detected = tally(f"{damage.__name__} checkpoints detected")
    content = (undisturbed() / "checkpoints/last.pt").read_bytes()
    rng = random.Random(0)
    for _ in range(100 if full else 10):
        (tmp_path / "damaged.pt").write_bytes(damage(content, rng))
        result = run("sample", "ckpt=damaged.pt", "n=1")
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert "ckpt=damaged.pt: " in result.err
        assert "damaged" in result.err.replace("damaged.pt", "") or "cut short" in result.err
        assert [path.name for path in tmp_path.iterdir()] == ["damaged.pt"]
        detected()


def test_run_resumes_from_the_newest_valid_checkpoint(undisturbed: Callable[..., Path], tally: Tally) -> None:
    survived = tally("runs with damaged checkpoints resumed bit for bit")
    shutil.copytree(undisturbed(), "run")
    Path("run/checkpoints/last.pt").unlink()
    Path("run/checkpoints/last.pt").hardlink_to("run/checkpoints/step_00000040.pt")  # as a run makes it
    rng = random.Random(0)
    for name, damage in (("step_00000040.pt", truncated), ("step_00000036.pt", corrupted)):
        file = Path("run/checkpoints") / name
        with file.open("rb+") as stream:
            changed = damage(stream.read(), rng)
            stream.seek(0)
            stream.write(changed)
            stream.truncate()
    with running("resume=run") as process:
        code, lines = process.wait()
    assert code == 0
    assert "resume=run/checkpoints/step_00000040.pt: " in lines[0]
    assert "resume=run/checkpoints/step_00000036.pt: " in lines[1]
    assert "using the one before it" in lines[0]
    assert any("steps 32 to 40" in line for line in lines)
    assert_same_run(Path("run"), undisturbed())
    survived()
