import math
from unittest.mock import Mock

import pytest
import torch

from ddpm_cli.training.loss_monitor import HostCopy, LossMonitor, TrainingDiverged

NAN = math.nan


def fed(losses: LossMonitor, *values: float) -> LossMonitor:
    for value in values:
        losses.add(torch.tensor(value))
    return losses


def test_mean_is_over_finite_losses_since_the_last_call() -> None:
    losses = fed(LossMonitor(3), 1.0, 2.0, NAN, 6.0)
    assert losses.mean() == 3.0
    assert losses.skipped == 1
    assert fed(losses, 5.0).mean() == 5.0
    assert math.isnan(losses.mean())


def test_limit_counts_consecutive_bad_steps() -> None:
    losses = fed(LossMonitor(3), NAN, NAN, 0.25, NAN, math.inf, 0.5, NAN, NAN)
    losses.mean()
    assert losses.skipped == 6
    with pytest.raises(TrainingDiverged, match=r"step 9: .* in 3 steps in a row .* last finite loss was 0\.5"):
        fed(losses, NAN).mean()


def test_divergence_is_detected_without_calling_mean() -> None:
    """Divergence is reported at most `max_bad_steps` steps late, and with the step at which it happened."""
    losses = fed(LossMonitor(4), 1.0, 1.0, 1.0, NAN, NAN, NAN)
    with pytest.raises(TrainingDiverged, match="step 7: "):
        fed(losses, NAN, NAN, NAN)


def test_restored_monitor_continues_identically() -> None:
    whole, first = fed(LossMonitor(3), 1.0, NAN, NAN), fed(LossMonitor(3), 1.0, NAN, NAN)
    second = LossMonitor(3)
    second.restore(first.state())
    for losses in (whole, second):
        with pytest.raises(TrainingDiverged, match="step 4: "):
            fed(losses, NAN).mean()
    third = LossMonitor(3)
    third.restore(first.state())
    assert fed(third, 3.0).mean() == 2.0


def test_losses_are_read_once_per_max_bad_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(len(self)) or tolist(self))
    fed(LossMonitor(10), *[1.0] * 35)
    assert waits == [10, 10, 10]


def test_copies_in_the_background_are_read_one_copy_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the host must not wait for the losses of the last few steps, but none may be lost."""

    class Background(HostCopy):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor)
            self.in_background, self._copied = True, Mock()

    monkeypatch.setattr("ddpm_cli.training.loss_monitor.HostCopy", Background)
    losses = fed(LossMonitor(2), 1.0, 2.0)
    assert losses.step == 0
    assert fed(losses, 3.0, 4.0).step == 2
    assert losses.mean() == 2.5
    fed(losses, NAN, NAN, NAN)
    with pytest.raises(TrainingDiverged, match="step 6: "):
        fed(losses, NAN)
