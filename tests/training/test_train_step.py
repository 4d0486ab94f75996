"""Check without CUDA that a training step can be captured as a CUDA graph."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.training.muon import Muon, batches_of
from ddpm_cli.training.trainer import Trainer
from tests.conftest import TINY, composed
from tests.training.test_trainer import EVERYTHING, trainer_of

NO_KERNEL = {
    "alias", "as_strided", "chunk", "detach", "empty", "empty_like", "expand", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_record_function_enter_new",
    "_record_function_exit", "_reshape_alias", "_unsafe_view",
}  # fmt: skip
"""Operations that launch no kernel on a GPU: views, allocations and profiler marks."""


class Launches(TorchDispatchMode):
    """Count the operations that would launch a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NO_KERNEL:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def _state_tensors(trainer: Trainer) -> list[Tensor]:
    networks = [*trainer.network.state_dict().values(), *trainer.ema.network.state_dict().values()]
    moments = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    return [*networks, *moments, *trainer.timestep_sampler.state().values()]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_a_step_changes_its_state_in_place(optimizer: str) -> None:
    """A replayed graph writes to the captured memory, so no state may change its address after the first step."""
    trainer = trainer_of(composed(*TINY, *EVERYTHING, f"train.optimizer={optimizer}"))
    trainer.train_step()
    before = _state_tensors(trainer)
    values, places = [tensor.clone() for tensor in before], [tensor.data_ptr() for tensor in before]
    for _ in range(2):
        trainer.train_step()
    after = _state_tensors(trainer)
    assert [tensor.data_ptr() for tensor in after] == places
    assert not all(torch.equal(old, new) for old, new in zip(values, after, strict=True))
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


@pytest.mark.parametrize(("optimizer", "most"), [("adam", 60), ("muon", 250)])
def test_launches_of_optimizer_and_average(optimizer: str, most: int) -> None:
    """Limit the kernels that the optimizer and the average of the default network launch in a step on a GPU."""
    trainer = trainer_of(composed("dataset=digits", f"train.optimizer={optimizer}", "train.batch_size=2", "device=cpu"))
    if isinstance(trainer.optimizer, Muon):
        trainer.optimizer.batches = batches_of(trainer.optimizer.matrices, pad=True)  # as on a GPU
    trainer.train_step()
    for parameter in trainer.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Launches() as seen:
        trainer.optimizer.step()
        trainer.ema.update(trainer.network, 0.9, torch.tensor(True))
    assert 0 < seen.names.total() <= most, seen.names


def test_a_batch_takes_few_launches() -> None:
    """Examples, mirroring, timesteps, noise and hidden labels, with the seeding of their generators on a CPU."""
    config = composed("dataset=digits", "dataset.flip=true", "conditioning=class", "train.batch_size=2", "device=cpu")
    trainer = trainer_of(config)
    trainer.train_step()
    with Launches() as seen:
        trainer._batch()
    assert 0 < seen.names.total() <= 30, seen.names
