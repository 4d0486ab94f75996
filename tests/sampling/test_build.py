"""Networks for inference: batches of one size, and compilation where it is worth its time."""

import pytest
import torch
from torch import Tensor, nn

from ddpm_cli.distributed import devices
from ddpm_cli.sampling.build import CALLS_WORTH_COMPILING, FixedBatches, compile_for_inference

CPU = torch.device("cpu")


class Recording:
    """A network that adds t and y to x, has memory for `room` examples and records the sizes of its batches."""

    def __init__(self, room: int = 100) -> None:
        self.room, self.sizes = room, list[int]()

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError
        return x + t[:, None] + (0 if y is None else y[:, None])


@pytest.mark.parametrize("labels", [False, True])
def test_smaller_batches_are_filled_up(labels: bool) -> None:
    network = Recording()
    fixed = FixedBatches(network)
    for size in (4, 4, 3, 1):
        x, t = torch.rand(size, 2), torch.arange(size)
        y = 10 * torch.arange(size) if labels else None
        assert torch.equal(fixed(x, t, y), Recording()(x, t, y))
    assert network.sizes == [4, 4, 4, 4]


def test_batches_that_did_not_fit_are_not_filled_up_to() -> None:
    network = Recording(room=4)
    fixed = FixedBatches(network)
    fixed(torch.rand(3, 2), torch.arange(3), None)
    with pytest.raises(torch.OutOfMemoryError):
        fixed(torch.rand(8, 2), torch.arange(8), None)
    fixed(torch.rand(4, 2), torch.arange(4), None)
    assert network.sizes == [3, 8, 4]


@pytest.mark.parametrize(
    ("choice", "device", "calls", "compiled"),
    [
        (None, "cuda", CALLS_WORTH_COMPILING, True),
        (None, "cuda", CALLS_WORTH_COMPILING - 2, False),
        (None, "cpu", 10**9, False),
        (True, "cpu", 2, True),
        (False, "cuda", 10**9, False),
    ],
)
def test_many_calls_are_compiled(
    choice: bool | None, device: str, calls: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_missing_for_compile", lambda device: None)
    network = nn.Linear(2, 2)
    compile_for_inference(network, torch.device(device), choice, 70, 64, calls // 2)  # two batches
    assert (network._compiled_call_impl is not None) == compiled


def test_network_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, times = nn.Linear(2, 2), []
    monkeypatch.setattr(network, "compile", lambda **kind: times.append(kind) or nn.Module.compile(network, **kind))
    for _ in range(2):
        compile_for_inference(network, CPU, True, 1, 1, 1)
    assert times == [{"dynamic": None}]


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_one_memory_layout(channels: int) -> None:
    strides = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        strides.append(x.stride())
        return x.to(memory_format=torch.channels_last)

    fixed, x = FixedBatches(network), torch.rand(4, channels, 8, 8)
    for _ in range(2):
        x = fixed(x, torch.zeros(4), None)
    assert strides == [torch.empty(4, channels, 8, 8).stride()] * 2
