import os
import signal

import pytest

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
