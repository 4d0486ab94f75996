"""Training in two processes, compared with one process and the same batches."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist

from ddpm_cli.checkpoints.format import load_checkpoint
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint, save_checkpoint
from ddpm_cli.checkpoints.sharded import SHARDED, ShardWriter, without_tensors
from ddpm_cli.distributed import collectives
from ddpm_cli.distributed.sharding import wrap_distributed
from ddpm_cli.sampling.build import in_precision, network_of
from ddpm_cli.tracking.run_writer import on_host
from ddpm_cli.training import start
from ddpm_cli.training.trainer import Trainer
from tests.conftest import TINY, composed
from tests.processes import in_two
from tests.training.test_trainer import CPU, EVERYTHING, trainer_of

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
BEFORE, AFTER = 2, 2


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


COMBINATIONS = [("ddp", "adam"), ("fsdp", "muon")]
OTHER_COMBINATIONS = [("ddp", "muon"), ("fsdp", "adam")]
EACH = [*COMBINATIONS, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHER_COMBINATIONS)]


def _overrides(optimizer: str) -> list[str]:
    return [*OVERRIDES, f"train.optimizer={optimizer}", "train.precision=fp32"]


def _in_combinations(
    combinations: list[tuple[str, str]], states: dict[str, dict[str, Any]], folder: Path
) -> dict[Any, Any]:
    """Train in each combination from the start and from the states of one process. Called in each of two processes.

    Sharded checkpoints are written to `folder`.
    """
    found: dict[Any, Any] = {}
    for strategy, optimizer in combinations:
        overrides = [*_overrides(optimizer), f"distributed.strategy={strategy}"]
        started, state_after, _ = _trained(overrides, None)
        sent: list[int] = []
        with _sizes_of_objects(sent):
            resumed, _, output = _trained(overrides, _state_in_a_resumed_run(states[optimizer]))
        found["sent", strategy, optimizer] = sent
        found[strategy, optimizer] = started, state_after, resumed, output
    found["sharded"] = _sharded(folder)
    for strategy in ("ddp", "fsdp"):
        found["bf16", strategy] = _steps(trainer_of(composed(*BF16, f"distributed.strategy={strategy}")), 4)
    return found


def _sharded(folder: Path) -> dict[str, Any]:
    """Return a state of which a sharded checkpoint is written while training goes on."""
    trainer = trainer_of(composed(*_overrides("muon"), "distributed.strategy=fsdp"))
    _steps(trainer, 2)
    state = on_host(trainer.state())
    shards = ShardWriter(folder).start(trainer.state(sharded=True))
    _steps(trainer, 2)
    if collectives.is_rank_zero():
        rest = {**without_tensors(state), "losses": {}, "seconds": 0.0, "data": ""}
        save_checkpoint(folder, {**rest, "shards": shards.checksums()})
    return state


def _state_in_a_resumed_run(state: dict[str, Any]) -> dict[str, Any]:
    """Return what this process knows of `state`, the contents of a checkpoint that rank 0 alone reads."""
    job = start.TrainingJob(composed(*TINY), Path("run"), [], "run")
    reads = state if collectives.is_rank_zero() else None
    with patch.object(start, "load_for_resume", lambda *_: reads):
        known = start._state_of_rank_zero(job)
    assert collectives.is_rank_zero() or not known.keys() & set(SHARDED)
    return known


@contextmanager
def _sizes_of_objects(sizes: list[int]) -> Iterator[None]:
    """Append the size of each object that this process broadcasts, in bytes."""
    broadcast = dist.broadcast_object_list

    def measured(objects: list[Any], src: int) -> None:
        sizes.append(len(pickle.dumps(objects)))
        broadcast(objects, src)

    with patch.object(dist, "broadcast_object_list", measured):
        yield


BF16 = [*TINY, "train.precision=bf16", "prediction=eps", "model.attention=[linear,full]", "train.lr=1e-3"]


COMPILED = {
    # Parameters for several buckets of gradients, at which torch.compile would divide the network.
    "ddp": ("aot_eager", ["model.width=64", "model.multipliers=[1]", "model.attention=[none]"]),
    # Blocks of more shapes than torch.compile makes versions of a function. On a CPU, aot_eager expects other layouts
    # of the images after a group norm than those that it gets.
    "fsdp": ("eager", ["model.multipliers=[1,2,3]", "model.attention=[linear,linear,linear]", "model.blocks=1"]),
}
"""Backend of torch.compile and network for each strategy."""


def _compiled(strategy: str) -> tuple[int, int, int]:
    """Take a step of a compiled network; return the numbers of graphs, of parts of graphs and of graph breaks."""
    import torch._dynamo.utils
    from torch._dynamo import config

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    backend, network = COMPILED[strategy]
    more = ["compile=true", "train.accumulate=2", f"distributed.strategy={strategy}"]
    with (
        patch("torch.compile", partial(torch.compile, backend=backend)),
        patch.object(config, "fail_on_recompile_limit_hit", True),
    ):
        _steps(trainer_of(composed(*TINY, *network, *more)), 1)
    breaks = sum(counters["graph_break"].values())
    return counters["stats"]["unique_graphs"], counters["aot_autograd"]["total"], breaks


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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two_processes(request: pytest.FixtureRequest, one_process: dict[str, Any], folder: Path) -> list[Any]:
    """Train in two processes. All combinations share one start of the processes, which takes seconds."""
    states = {name: found[1] for name, found in one_process.items()}
    combinations = COMBINATIONS + (OTHER_COMBINATIONS if request.config.getoption("--slow") else [])
    return in_two(_in_combinations, folder, combinations, states, folder / "run")


def test_sharded_checkpoint_has_the_same_bits(two_processes: list[Any], folder: Path) -> None:
    state, path = two_processes[0]["sharded"], find_checkpoint("ckpt", str(folder / "run"))
    assert len(list(path.with_name("step_00000002.shards").iterdir())) == 2  # one file for each process
    assert path.stat().st_size < 20_000
    read = load_checkpoint("ckpt", path)
    for key in ("model", "ema"):
        assert read[key].keys() == state[key].keys()
        assert all(torch.equal(x, state[key][name]) for name, x in read[key].items())
    for key in ("averages", "optimizer"):
        assert read[key].keys() == state[key].keys() != set()
        for i, own in state[key].items():
            assert read[key][i].keys() == own.keys()
            assert all(torch.equal(x, own[name]) for name, x in read[key][i].items())


@pytest.mark.parametrize(("strategy", "optimizer"), EACH)
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
            assert {*found[1]["model"].values(), *found[1]["ema"].values()} == {None}  # no full tensors
            assert all(
                moments["step"] is None or moments["step"].ndim == 0 for moments in found[1]["optimizer"].values()
            )
    resumed_in_one, *_ = _trained(_overrides(optimizer), two_processes[0][strategy, optimizer][1])
    assert torch.allclose(torch.tensor(resumed_in_one), torch.tensor(resumed), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("strategy", "optimizer"), EACH)
def test_tensors_of_a_checkpoint_are_not_sent_as_objects(
    strategy: str, optimizer: str, one_process: dict[str, Any], two_processes: list[Any]
) -> None:
    """On resume, rank 0 pickles only names, shapes and the small items of a checkpoint."""
    sent, state = two_processes[0]["sent", strategy, optimizer], one_process[optimizer][1]
    assert 0 < max(sent) < 20_000 < sum(x.nbytes for x in state["model"].values())


def test_shards_in_bf16_train_like_copies(two_processes: list[Any]) -> None:
    """Parameters that are gathered in bf16 give the losses of a network that computes in bf16."""
    for process in two_processes:
        copies, shards = (torch.tensor(process["bf16", strategy])[:, 0] for strategy in ("ddp", "fsdp"))
        assert torch.allclose(shards, copies, rtol=0.02)


def _both_compiled() -> list[tuple[int, int, int]]:
    return [_compiled(strategy) for strategy in ("ddp", "fsdp")]


@pytest.mark.slow  # 15 seconds on two cores
def test_compiled_networks(tmp_path: Path) -> None:
    """A copied network is one graph. Blocks of a sharded one are compiled each by itself, without reaching a limit."""
    for copied, (graphs, _, breaks) in in_two(_both_compiled, tmp_path):
        assert copied == (1, 1, 0)
        assert graphs > 8
        assert breaks == 0


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_strides_of_their_buckets(dtype: torch.dtype, tmp_path: Path) -> None:
    """The strides of gradients of 1x1 filters depend on the kernel; torch warns if those of a bucket are others."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    torch.set_warn_always(True)  # by default once in a process
    try:
        network = network_of(composed(*TINY, "model.attention=[linear,full]"), [])
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrapped = wrap_distributed(network, network, "ddp", CPU, dtype, compiled=False)
        predict = in_precision(wrapped, CPU, dtype)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predict(torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4]), None).square().mean().backward()
    finally:
        torch.set_warn_always(False)
        dist.destroy_process_group()
    assert not [warning for warning in caught if "strides" in str(warning.message)]
    assert all(parameter.grad is not None for parameter in network.parameters())
