"""Training in two processes, compared with one process and the same batches."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist

from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.sharding import wrap_distributed
from ddpm_cli.sampling.build import network_of
from ddpm_cli.training.trainer import ON_RANK_ZERO, Trainer
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


def _all_combinations(states: dict[str, dict[str, Any]]) -> dict[Any, Any]:
    """Train all combinations from the start and from the states of one process. Called in each of two processes."""
    found: dict[Any, Any] = {}
    for strategy, optimizer in COMBINATIONS:
        overrides = [*_overrides(optimizer), f"distributed.strategy={strategy}"]
        started, state_after, _ = _trained(overrides, None)
        state = states[optimizer]
        if collectives.rank() == 1:  # which has no weights and moments, as in a resumed run
            state = {key: value for key, value in state.items() if key not in ON_RANK_ZERO}
        resumed, _, output = _trained(overrides, state)
        found[strategy, optimizer] = started, state_after, resumed, output
    for strategy in ("ddp", "fsdp"):
        found["bf16", strategy] = _steps(trainer_of(composed(*BF16, f"distributed.strategy={strategy}")), 4)
        found["compiled", strategy] = _compiled(strategy)
    return found


BF16 = [*TINY, "train.precision=bf16", "prediction=eps", "model.attention=[linear,full]", "train.lr=1e-3"]


def _compiled(strategy: str) -> tuple[int, int, int]:
    """Take two steps of a compiled network; return the numbers of graphs, of graph breaks and of recompilations."""
    import torch._dynamo.utils

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    small = ["model.multipliers=[1]", "model.attention=[none]", "compile=true", "train.accumulate=2"]
    # With aot_eager, convolutions of a layout that differs from that of their filters fail on a CPU.
    backend = "aot_eager" if strategy == "ddp" else "eager"
    with patch("torch.compile", partial(torch.compile, backend=backend)):
        trainer = trainer_of(composed(*TINY, *small, f"distributed.strategy={strategy}"))
    _steps(trainer, 2)
    breaks = sum(counters["graph_break"].values())
    return counters["stats"]["unique_graphs"], breaks, sum(counters["recompiles"].values())


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
    for rank, process in enumerate(two_processes):
        found = process[strategy, optimizer]
        assert torch.allclose(torch.tensor(found[0]), torch.tensor(started), rtol=1e-5, atol=1e-6)
        assert torch.allclose(torch.tensor(found[2]), torch.tensor(resumed), rtol=1e-4, atol=1e-6)
        assert torch.allclose(found[3], output, atol=1e-4)
        if rank == 0 or strategy == "ddp":
            _assert_close(found[1], state)
        else:
            assert {*found[1]["model"].values(), *found[1]["ema"].values()} == {None}
            assert all(
                moments["step"] is None or moments["step"].ndim == 0 for moments in found[1]["optimizer"].values()
            )
    resumed_in_one, *_ = _trained(_overrides(optimizer), two_processes[0][strategy, optimizer][1])
    assert torch.allclose(torch.tensor(resumed_in_one), torch.tensor(resumed), rtol=1e-4, atol=1e-6)


def test_shards_in_bf16_train_like_copies(two_processes: list[Any]) -> None:
    """Parameters that are gathered in bf16 give the losses of a network that computes in bf16."""
    for process in two_processes:
        copies, shards = (torch.tensor(process["bf16", strategy])[:, 0] for strategy in ("ddp", "fsdp"))
        assert torch.allclose(shards, copies, rtol=0.02)


def test_compiled_networks(two_processes: list[Any]) -> None:
    """A copied network is one graph. Blocks of a sharded one are compiled each by itself, without reaching a limit."""
    for process in two_processes:
        assert process["compiled", "ddp"] == (1, 0, 0)
        graphs, _, recompilations = process["compiled", "fsdp"]
        assert graphs > 1
        assert recompilations == 0


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


def test_gradients_of_small_filters_are_not_copied(tmp_path: Path) -> None:
    """Strides of 1x1 filters must be those of their gradients in the buckets, or torch copies them at each step."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        network = network_of(composed(*TINY, "model.attention=[linear,full]"), [])
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrapped = wrap_distributed(network, network, "ddp", torch.device("cpu"), torch.float32, compiled=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrapped(torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4]), None).square().mean().backward()
    finally:
        dist.destroy_process_group()
    assert not [warning for warning in caught if "strides" in str(warning.message)]
