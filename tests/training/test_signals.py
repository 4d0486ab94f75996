import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest

from ddpm_cli.errors import Stopped
from ddpm_cli.training.signals import Signals


def test_signals_are_recorded_and_handlers_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Signals() as signals:
        assert (signals.stop, signals.save) == (None, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (signals.stop, signals.save) == (None, True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_second_signal_has_its_default_effect() -> None:
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.stop == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, old)


def test_ignored_signals_stay_ignored() -> None:
    """nohup ignores SIGHUP, and a shell ignores SIGINT for background jobs; both must stay ignored."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.stop is None
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.fixture
def requeued() -> Iterator[list[int]]:
    """Set the handlers that submitit sets in a job of SLURM; return a list that gets the signals it handles."""
    handled: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}

    def put_back_into_the_queue(number: int, frame: object) -> NoReturn:
        handled.append(number)
        sys.exit(-1)

    signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
    signal.signal(signal.SIGUSR2, put_back_into_the_queue)
    yield handled
    for number, handler in before.items():
        signal.signal(number, handler)


def test_job_is_put_back_into_the_queue_after_the_run_has_stopped(requeued: list[int]) -> None:
    def run() -> None:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert (signals.stop, signals.save, requeued) == (signal.SIGUSR2, False, [])
            raise Stopped(signals.stop, "saved")

    with pytest.raises(SystemExit):
        run()
    assert requeued == [signal.SIGUSR2]


def test_finished_job_is_not_put_back_into_the_queue(requeued: list[int]) -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert signals.stop == signal.SIGUSR2
    assert requeued == []


def test_preempted_job_saves_and_goes_on(requeued: list[int]) -> None:
    """SLURM puts such a job back into the queue unless it ends by itself."""
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.stop, signals.save) == (None, True)
    assert requeued == []
