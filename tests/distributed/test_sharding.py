"""Training in two processes, compared with one process and the same batches."""

from typing import Any

import pytest
import torch

from ddpm_cli.distributed import collectives
from ddpm_cli.training.trainer import Trainer
from tests.conftest import TINY, composed
from tests.processes import in_two
from tests.training.test_trainer import EVERYTHING, trainer_of

# Without dropout, because its masks differ between processes. All other random numbers do not depend on their number.
# With prediction=eps, because with v the rounding errors exceed the tolerance: Adam takes full steps for gradients
# near 0.
OVERRIDES = [
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


def _trained(overrides: list[str], state: dict[str, Any] | None) -> tuple[Any, Any, Any]:
    """Train the first steps, or those after `state`.

    Return the losses and norms, the state without the config, and an output of the averaged network.
    """
    trainer = trainer_of(composed(*overrides))
    if state is not None:
        trainer.restore(state)
    measured = _steps(trainer, BEFORE if state is None else AFTER)
    channels = 2 if trainer.config.model.self_condition else 1
    with torch.no_grad():
        x, t = torch.ones(2, channels, 8, 8), torch.tensor([1, 2])
        output = trainer.ema.network(x, t, torch.tensor([0, 1]))
    return measured, {key: value for key, value in trainer.state().items() if key != "config"}, output


COMBINATIONS = [("ddp", "adam"), ("ddp", "muon"), ("fsdp", "adam"), ("fsdp", "muon")]


def _overrides(optimizer: str) -> list[str]:
    return [*OVERRIDES, f"train.optimizer={optimizer}", "train.precision=fp32"]


def _all_combinations(states: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Train all combinations from the start and from the states of one process. Called in each of two processes."""
    found = {}
    for strategy, optimizer in COMBINATIONS:
        overrides = [*_overrides(optimizer), f"distributed.strategy={strategy}"]
        started, state_after, _ = _trained(overrides, None)
        resumed, _, output = _trained(overrides, states[optimizer])
        found[strategy, optimizer] = started, state_after, resumed, output
    return found


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    """Train in one process. Return by optimizer the first steps, the state after them, the other steps, an output."""
    found = {}
    for optimizer in ("adam", "muon"):
        started, state, _ = _trained(_overrides(optimizer), None)
        resumed, _, output = _trained(_overrides(optimizer), state)
        found[optimizer] = started, state, resumed, output
    return found


@pytest.fixture(scope="module")
def two_processes(one_process: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Train in two processes. All combinations share one start of the processes, which takes seconds."""
    return in_two(
        _all_combinations, tmp_path_factory.mktemp("two"), {name: found[1] for name, found in one_process.items()}
    )


@pytest.mark.parametrize(("strategy", "optimizer"), COMBINATIONS)
def test_two_processes_train_like_one(
    strategy: str, optimizer: str, one_process: dict[str, Any], two_processes: list[Any]
) -> None:
    """Compare losses, norms, weights, moments and history, also after a resume in one process or two."""
    assert collectives.world_size() == 1
    started, state, resumed, output = one_process[optimizer]
    for process in two_processes:
        found = process[strategy, optimizer]
        assert torch.allclose(torch.tensor(found[0]), torch.tensor(started), rtol=1e-5, atol=1e-6)
        assert torch.allclose(torch.tensor(found[2]), torch.tensor(resumed), rtol=1e-4, atol=1e-6)
        assert torch.allclose(found[3], output, atol=1e-4)
        _assert_close(found[1], state)
    resumed_in_one, *_ = _trained(_overrides(optimizer), two_processes[0][strategy, optimizer][1])
    assert torch.allclose(torch.tensor(resumed_in_one), torch.tensor(resumed), rtol=1e-4, atol=1e-6)


def _assert_close(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    match ours:
        case dict():
            assert ours.keys() == theirs.keys()
            for key in ours:
                _assert_close(ours[key], theirs[key])
        case torch.Tensor():
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)  # Adam takes full steps for gradients near 0
        case _:
            assert ours == theirs
