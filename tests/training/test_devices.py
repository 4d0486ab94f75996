"""What a CPU can show of other devices: fake CUDA tensors run the loss and the samplers."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import denoising_loss
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.samplers import sample
from ddpm_cli.errors import UserError
from ddpm_cli.models import build_network
from ddpm_cli.options import L2, Ddim, Ddpm
from ddpm_cli.training.devices import resolve_device, resolve_precision
from tests.conftest import TINY, composed

CPU = torch.device("cpu")
NO_CUDA = not torch.cuda.is_available()


class NoDoubles(TorchDispatchMode):
    """Fails where a float64 tensor arises on another device than the CPU: MPS has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
                assert tensor.dtype != torch.float64, func
        return out


@pytest.fixture
def as_if_on_cuda() -> Iterator[None]:
    with FakeTensorMode(), torch.device("cuda"):
        yield


# Made for real, for its T Python floats; the fake mode has no numbers.
PROCESS = Process(torch.linspace(0.01, 0.2, 50, dtype=torch.float64))


def on_cuda(self_condition: bool) -> Denoiser:
    """A denoiser whose network and tables are fake CUDA tensors."""
    model = composed(*TINY, "model.attention=[linear,full]", f"model.self_condition={self_condition}").model
    process = copy.copy(PROCESS)
    process.sqrt_alphas_cumprod = torch.empty(process.timesteps)
    process.sqrt_one_minus_alphas_cumprod = torch.empty(process.timesteps)
    return Denoiser(build_network(model, 1), process, "eps", self_condition)


@pytest.mark.parametrize("self_condition", [False, True])
def test_the_loss_runs_as_if_on_cuda(as_if_on_cuda: None, self_condition: bool) -> None:
    denoiser = on_cuda(self_condition)
    with NoDoubles():
        x0, eps, t = torch.empty(4, 1, 8, 8), torch.empty(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        loss = denoising_loss(denoiser, L2(), x0, t, eps, self_condition)
    assert loss.device.type == "cuda"
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("sampler", [Ddpm(steps=3, clip=True), Ddim(steps=3, clip=True, eta=0.5)])
def test_each_samplers_step_runs_as_if_on_cuda(as_if_on_cuda: None, sampler: Ddpm | Ddim) -> None:
    denoiser = on_cuda(True)
    with NoDoubles():
        steps = list(sample(sampler, denoiser, torch.empty(2, 1, 8, 8), lambda: torch.empty(2, 1, 8, 8)))
    assert len(steps) == 3
    assert all(step.x.device.type == step.x0.device.type == "cuda" for step in steps)


def test_the_fake_device_does_catch_a_stray_tensor(as_if_on_cuda: None) -> None:
    with pytest.raises(RuntimeError):
        torch.empty(2) + torch.empty(2, device="cpu")
    with pytest.raises(Exception, match="_local_scalar_dense"):
        torch.empty(()).item()


def test_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert resolve_device("auto").type == "mps"
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize(
    "name", ["gpu", "cpu:0", "cuda:x", "cuda:", "mps:1", "", "cuda:-1", "cpu:", "cuda:²"]
)
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(UserError, match="device="):
        resolve_device(name)


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_cuda(name: str) -> None:
    with pytest.raises(UserError, match=f"device={name}: torch sees no CUDA device"):
        resolve_device(name)


def test_a_cuda_number_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")


def test_precision() -> None:
    assert resolve_precision("fp16", CPU) == torch.float16
    assert resolve_precision("auto", torch.device("mps")) == torch.float32
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_bf16 = bool(flags.get("avx512_bf16"))
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if has_bf16 else torch.float32)
