"""Two processes against one with the same batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.distributed import collectives
from ddpm_cli.training.trainer import Trainer
from tests.conftest import TINY, composed
from tests.processes import in_two
from tests.training.test_trainer import EVERYTHING, trainer_of

# Dropout's masks are a process's own; the rest of what is random is the same for any number of them.
# eps: of v's gradients the rounding, which Adam makes whole steps of where they are near 0, grows past the tolerance.
KNOBS = [
    *TINY,
    *EVERYTHING,
    "prediction=eps",
    "model.dropout=0",
    "train.steps=6",
    "train.lr=1e-2",
    "train.grad_clip=0.5",
]
BEFORE, AFTER = 3, 3


def _steps(trainer: Trainer, count: int) -> list[tuple[float, float]]:
    return [(loss.item(), norm.item()) for loss, norm in (trainer.train_step() for _ in range(count))]


def _trained(knobs: list[str], state: dict[str, Any] | None) -> tuple[Any, Any, Any]:
    """Some steps, or those after `state`: the losses and norms, what a checkpoint holds, an average's answer."""
    trainer = trainer_of(composed(*knobs))
    if state is not None:
        trainer.restore(state)
    seen = _steps(trainer, BEFORE if state is None else AFTER)
    channels = 2 if trainer.config.model.self_condition else 1
    with torch.no_grad():
        x, t = torch.ones(2, channels, 8, 8), torch.tensor([1, 2])
        answer = trainer.ema.network(x, t, torch.tensor([0, 1]))
    return seen, {key: value for key, value in trainer.state().items() if key != "config"}, answer


def _both(knobs: list[str], state: dict[str, Any]) -> Any:
    begun, held, _ = _trained(knobs, None)
    resumed, _, answer = _trained(knobs, state)
    return begun, held, resumed, answer


@pytest.mark.parametrize(
    ("strategy", "optimizer"), [("ddp", "adam"), ("ddp", "muon"), ("fsdp", "adam"), ("fsdp", "muon")]
)
def test_two_processes_train_as_one_does(strategy: str, optimizer: str, tmp_path: Path) -> None:
    """The losses, the norms, the weights, the moments, the history; and from there on, begun by the other kind."""
    assert collectives.world_size() == 1
    alone = [*KNOBS, f"train.optimizer={optimizer}", "train.precision=fp32"]
    begun, state, _ = _trained(alone, None)
    resumed, end, answer = _trained(alone, state)
    knobs = [*alone, f"distributed.strategy={strategy}"]
    for found in in_two(_both, tmp_path, knobs, state):
        assert torch.allclose(torch.tensor(found[0]), torch.tensor(begun), rtol=1e-5, atol=1e-6)
        assert torch.allclose(torch.tensor(found[2]), torch.tensor(resumed), rtol=1e-4, atol=1e-6)
        assert torch.allclose(found[3], answer, atol=1e-4)
        _assert_close(found[1], state)
    resumed_by_one, *_ = _trained(alone, torch.load(tmp_path / "0.pt")[1])
    assert torch.allclose(torch.tensor(resumed_by_one), torch.tensor(resumed), rtol=1e-4, atol=1e-6)
    assert end["step"] == BEFORE + AFTER


def _assert_close(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    match ours:
        case dict():
            assert ours.keys() == theirs.keys()
            for key in ours:
                _assert_close(ours[key], theirs[key])
        case torch.Tensor():
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)  # Adam makes steps of nothing, too
        case _:
            assert ours == theirs
