"""The training loop: signals at any moment, and pictures that a killed run has not drawn."""

import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import Failure, Stopped
from ddpm_cli.files import NoRoom
from ddpm_cli.images.samples import picture
from ddpm_cli.tracking.run_writer import RunWriter
from ddpm_cli.training.loop import Loop
from ddpm_cli.training.signals import Signals
from tests.conftest import TINY, composed
from tests.training.test_trainer import assert_same, loop_of


def last_step(folder: Path) -> int:
    return int(load_checkpoint("ckpt", folder / "checkpoints" / "last.pt")["step"])


def before(monkeypatch: pytest.MonkeyPatch, loop: Loop, method: str, action: Callable[[], None]) -> None:
    """Call `action` right before a method of `loop`."""
    original = getattr(loop, method)

    def call(*args: object) -> None:
        action()
        original(*args)

    monkeypatch.setattr(loop, method, call)


@pytest.mark.parametrize("moment", ["_raise_if_stopped", "_save", "_draw", "_is_milestone"])
def test_stopped_step_is_saved_whenever_the_signal_arrives(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals()
    loop = loop_of(composed(*TINY, "train.steps=9", "train.milestone_every=4"), tmp_path, signals=signals)

    def asks() -> None:
        signals.stop = signal.SIGTERM

    before(monkeypatch, loop, moment, asks)
    with pytest.raises(Stopped) as caught:
        loop.run()
    assert caught.value.status == 143
    assert f"stopped after step {last_step(tmp_path)} of 9" in str(caught.value)
    assert last_step(tmp_path) == loop.trainer.step


def test_stop_with_a_full_disk_does_not_claim_to_have_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(*TINY, "train.steps=9", "train.milestone_every=4", "train.on_disk_full=continue")
    signals = Signals()
    loop = loop_of(config, tmp_path, signals=signals)

    def full() -> None:
        raise NoRoom(tmp_path / "x.pt", 5)

    def asks() -> None:
        signals.stop = signal.SIGTERM

    before(monkeypatch, loop, "_save", full)
    before(monkeypatch, loop, "_draw", asks)
    with pytest.raises(NoRoom):
        loop.run()
    assert last_step(tmp_path) == 0


@pytest.mark.parametrize("more", [[], ["conditioning=class"], ["train.batch_size=3", "train.samples=20"]])
def test_film_ends_with_the_final_samples(more: list[str], tmp_path: Path) -> None:
    last = {word.split("=")[0]: word for word in [*TINY, "train.steps=2", "sampler.steps=5", *more]}
    loop = loop_of(composed(*last.values()), tmp_path)
    loop.run()
    labels = [i % 10 for i in range(min(16, loop.trainer.config.train.samples))]
    *_, end = loop.trainer.generator.steps(0, labels, range(len(labels)))
    wanted = picture(end.x, [str(label) for label in labels] if loop.trainer.classes else None)
    with Image.open(tmp_path / "samples/film.gif") as film:
        assert film.n_frames == 5
        film.seek(4)
        ours, theirs = (np.asarray(image.convert("L")).astype(int) for image in (film, wanted))
    assert np.abs(ours - theirs).max() <= 1


def test_film_is_written_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, seen = loop_of(composed(*TINY, "train.steps=5", "train.milestone_every=2"), tmp_path), []
    before(monkeypatch, loop, "_draw", lambda: seen.append((tmp_path / "samples/film.gif").exists()))
    loop.run()
    assert seen == [False, False, False]
    assert (tmp_path / "samples/film.gif").exists()


@pytest.mark.parametrize("moment", ["save_gif", "save_png"])
def test_last_grid_always_has_a_film(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the run is killed before drawing either picture, the resumed process draws both."""
    config = composed(*TINY, "train.steps=2")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    loop = loop_of(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(f"ddpm_cli.tracking.run_writer.{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    grid, film = tmp_path / "samples/step_00000002.png", tmp_path / "samples/film.gif"
    assert not grid.exists()
    loop_of(config, tmp_path, from_step=2).run()
    assert grid.exists()
    assert film.exists()


def test_missing_grid_is_drawn_on_resume(tmp_path: Path) -> None:
    config = composed(*TINY, "train.steps=4", "train.milestone_every=2")
    loop_of(config, tmp_path).run()
    pictures = [tmp_path / "samples" / f"step_0000000{step}.png" for step in (2, 4)]
    drawn = pictures[1].read_bytes()
    pictures[1].unlink()
    loop_of(config, tmp_path, from_step=4).run()
    assert pictures[1].read_bytes() == drawn


def test_checkpoints_in_the_background_equal_those_in_the_foreground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for background in (False, True):
        monkeypatch.setattr(
            "ddpm_cli.training.loop.RunWriter", lambda *args, b=background, **_: RunWriter(*args, background=b)
        )
        folder = tmp_path / str(background)
        with closing(loop_of(composed(*TINY, "train.steps=4", "train.milestone_every=2"), folder)) as running:
            running.run()
        states.append([load_checkpoint("ckpt", path) for path in sorted(folder.glob("checkpoints/step_*.pt"))])
    for state in (*states[0], *states[1]):
        del state["seconds"]
    assert len(states[0]) == 3
    assert_same(states[0][1:], states[1][1:])  # the first has no loss yet: NaN


def test_several_processes_ask_for_signals_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 0.2 s of steps, but at least every log_every steps; a single process asks after each step."""
    one = loop_of(composed(*TINY, "train.log_every=50", "train.steps=1000"), tmp_path)
    one._poll_signals()
    assert one._next_poll == 1
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    for slowest, due in ((0.01, 20), (0.001, 50), (3.0, 1)):
        monkeypatch.setattr(collectives, "all_reduce_max", lambda asked, _, s=slowest: [asked, round(1e6 * s)])
        one._poll_signals()
        assert one._next_poll == due


def test_out_of_memory_in_a_step_says_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loop_of(composed(*TINY, "train.accumulate=2"), tmp_path)

    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(one.trainer, "train_step", out_of_memory)
    tried = "try train.accumulate=4, a smaller batch or model.gradient_checkpointing=true"
    with pytest.raises(
        Failure, match=f"^train.batch_size=8: a step takes more memory than the device has free; {tried}"
    ):
        one.run()


def test_request_for_a_checkpoint_is_answered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if signals are not asked for after each step, as in several processes."""
    signals = Signals()
    one = loop_of(composed(*TINY, "train.steps=6", "train.milestone_every=6"), tmp_path, signals=signals)
    poll, saved = one._poll_signals, list[int]()

    def rarely() -> None:
        signals.save = one.trainer.step == 2
        poll()
        one._next_poll = one.trainer.step + 2

    monkeypatch.setattr(one, "_poll_signals", rarely)
    before(monkeypatch, one, "_save", lambda: saved.append(one.trainer.step))
    one.run()
    assert saved == [2, 6]
