"""Two processes against one with the same batches."""

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


COMBINATIONS = [("ddp", "adam"), ("ddp", "muon"), ("fsdp", "adam"), ("fsdp", "muon")]


def _knobs(optimizer: str) -> list[str]:
    return [*KNOBS, f"train.optimizer={optimizer}", "train.precision=fp32"]


def _all_combinations(states: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """What each of two processes finds: from the start, and from the state that one process left."""
    found = {}
    for strategy, optimizer in COMBINATIONS:
        knobs = [*_knobs(optimizer), f"distributed.strategy={strategy}"]
        started, held, _ = _trained(knobs, None)
        resumed, _, answer = _trained(knobs, states[optimizer])
        found[strategy, optimizer] = started, held, resumed, answer
    return found


@pytest.fixture(scope="module")
def by_one() -> dict[str, Any]:
    """Trained by one process, for each optimizer: the first steps, its state after them, the rest, an answer."""
    found = {}
    for optimizer in ("adam", "muon"):
        started, state, _ = _trained(_knobs(optimizer), None)
        resumed, _, answer = _trained(_knobs(optimizer), state)
        found[optimizer] = started, state, resumed, answer
    return found


@pytest.fixture(scope="module")
def by_two(by_one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The same by two processes, for all strategies in one start of them, which takes seconds."""
    return in_two(_all_combinations, tmp_path_factory.mktemp("two"), {name: found[1] for name, found in by_one.items()})


@pytest.mark.parametrize(("strategy", "optimizer"), COMBINATIONS)
def test_two_processes_train_as_one_does(
    strategy: str, optimizer: str, by_one: dict[str, Any], by_two: list[Any]
) -> None:
    """Losses, norms, weights, moments and history; and from there on, resumed by one process or by two."""
    assert collectives.world_size() == 1
    started, state, resumed, answer = by_one[optimizer]
    for process in by_two:
        found = process[strategy, optimizer]
        assert torch.allclose(torch.tensor(found[0]), torch.tensor(started), rtol=1e-5, atol=1e-6)
        assert torch.allclose(torch.tensor(found[2]), torch.tensor(resumed), rtol=1e-4, atol=1e-6)
        assert torch.allclose(found[3], answer, atol=1e-4)
        _assert_close(found[1], state)
    resumed_by_one, *_ = _trained(_knobs(optimizer), by_two[0][strategy, optimizer][1])
    assert torch.allclose(torch.tensor(resumed_by_one), torch.tensor(resumed), rtol=1e-4, atol=1e-6)


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
