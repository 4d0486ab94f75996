"""Programs that use all cores of a CPU take turns. Two `Turns` in a process exclude each other as two processes do."""

import itertools
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ddpm_cli.distributed import turns
from ddpm_cli.distributed.turns import Turns, cpu_turn, in_turns

CPU = torch.device("cpu")


def test_turns_alternate_and_never_overlap(tmp_path: Path) -> None:
    order: list[str] = []
    running = threading.Lock()

    def work(name: str, own: Turns) -> None:
        for _ in range(20):
            with own.turn():
                assert running.acquire(blocking=False)
                order.append(name)
                time.sleep(0.003)
                running.release()

    threads = [threading.Thread(target=work, args=(name, Turns(tmp_path / "x"))) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["a"] * 20 + ["b"] * 20
    both = order[order.index("b" if order[0] == "a" else "a") :]
    changes = sum(one != other for one, other in itertools.pairwise(both))
    assert changes >= 30  # of at most 38; without the lock `next`, one would have its turns in a row


def test_suspended_program_delays_the_others_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    with Turns(tmp_path / "x").turn():
        other, start = Turns(tmp_path / "x"), time.monotonic()
        for _ in range(5):
            with other.turn():
                pass
        assert 0.05 <= time.monotonic() - start < 0.2


def test_nobody_waits_if_the_file_cannot_be_opened(tmp_path: Path) -> None:
    with Turns(tmp_path / "missing" / "x").turn(), Turns(tmp_path / "missing" / "x").turn():
        pass


def test_only_programs_that_use_most_cores_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "turns", lambda: Turns(tmp_path / "x"))
    monkeypatch.setattr(turns, "cores", lambda: 8)
    taking = []
    for threads in (1, 4, 5, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        taking.append(not isinstance(cpu_turn(CPU), nullcontext))
    assert taking == [False, False, True, True]
    assert isinstance(cpu_turn(torch.device("cuda")), nullcontext)


def test_items_are_computed_in_turns() -> None:
    assert list(in_turns(iter([1, 2, 3]), CPU)) == [1, 2, 3]
