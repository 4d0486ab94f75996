"""Devices, precision and compilation, checked on a CPU. Fake CUDA tensors run the loss and the samplers."""

import copy
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._triton
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_cli.config import Ddim, Ddpm, DpmPp2M, DpmPp2MSde, DpmPp3M, Edm, Euler, Heun, Sampler, UniPc
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.objective import Loss, Objective, hybrid, l2, min_snr, unweighted, vlb
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.sampling import Guidance, GuidanceRule
from ddpm_cli.diffusion.timestep_samplers import SecondMoment
from ddpm_cli.distributed import devices
from ddpm_cli.distributed.devices import configure_arithmetic, resolve_device, resolve_precision, should_compile
from ddpm_cli.errors import UserError
from ddpm_cli.models import build_network
from tests.conftest import TINY, a_sampler, composed
from tests.diffusion.toys import steps_of

CPU = torch.device("cpu")
NO_CUDA = not torch.cuda.is_available()


class ForbidFloat64(TorchDispatchMode):
    """Fail if a float64 tensor is created on another device than the CPU, because MPS does not support float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
                assert tensor.dtype != torch.float64, func
        return out


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    """Create all tensors as fake CUDA tensors, which have a shape, a type and a device but no values."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


# Created outside the fake mode, because it computes Python floats from the values of tensors.
PROCESS = Process.from_betas(torch.linspace(0.01, 0.2, 50, dtype=torch.float64))


def fake_cuda_denoiser(self_condition: bool, variance: str = "fixed_small") -> Denoiser:
    """Return a denoiser for three classes whose weights and tables are fake CUDA tensors."""
    model = composed(*TINY, "model.attention=[linear,full]", f"model.self_condition={self_condition}").model
    process = copy.copy(PROCESS)
    for name, table in vars(PROCESS).items():
        if isinstance(table, torch.Tensor):
            setattr(process, name, torch.empty(table.shape))
    network = build_network(model, 1, classes=3, outputs=2 if variance == "learned_range" else 1)
    return Denoiser(network, process, "eps", variance, self_condition)


@pytest.mark.parametrize("loss", [l2, partial(hybrid, vlb_weight=0.001), vlb])
@pytest.mark.parametrize("self_condition", [False, True])
def test_loss_runs_on_fake_cuda(fake_cuda: None, self_condition: bool, loss: Loss) -> None:
    denoiser = fake_cuda_denoiser(self_condition, "fixed_small" if loss is l2 else "learned_range")
    weighting = unweighted if loss is vlb else partial(min_snr, gamma=5.0)
    with ForbidFloat64():
        x0, eps, t = torch.empty(4, 1, 8, 8), torch.empty(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        losses = Objective(denoiser, loss, weighting)(x0, t, eps, t, self_condition)
    assert losses.device.type == "cuda"
    assert losses.dtype == torch.float32


@pytest.mark.parametrize("kind", [Ddpm, Ddim, Euler, Heun, Edm, DpmPp2M, DpmPp2MSde, DpmPp3M, UniPc])
@pytest.mark.parametrize("thresholding", ["clip", "dynamic"])
def test_samplers_run_on_fake_cuda(fake_cuda: None, kind: type[Sampler], thresholding: str) -> None:
    denoiser = fake_cuda_denoiser(True, "learned_range")
    noisy = {Ddim: {"eta": 0.5}, Edm: {"s_tmax": 50.0}}.get(kind, {})
    sampler = a_sampler(kind, steps=3, thresholding=thresholding, **noisy)
    guidance = Guidance(torch.zeros(2, dtype=torch.int64), 3, GuidanceRule(2.0))
    with ForbidFloat64():
        steps = list(steps_of(sampler, denoiser, torch.empty(2, 1, 8, 8), lambda: torch.empty(2, 1, 8, 8), guidance))
    assert len(steps) == 3
    assert all(step.x.device.type == step.x0.device.type == "cuda" for step in steps)


def test_loss_history_stays_on_fake_cuda(fake_cuda: None) -> None:
    sampler = SecondMoment(PROCESS, "cuda", 10, 0.001)
    sampler.update(torch.zeros(4, dtype=torch.int64), torch.empty(4))
    p = sampler.probabilities()
    assert p.device.type == "cuda"
    assert p.dtype == torch.float64


def test_fake_device_detects_a_tensor_on_the_cpu(fake_cuda: None) -> None:
    with pytest.raises(RuntimeError):
        torch.empty(2) + torch.empty(2, device="cpu")
    with pytest.raises(Exception, match="_local_scalar_dense"):
        torch.empty(()).item()


def test_auto_is_the_best_available_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert resolve_device("auto").type == "mps"
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", "cuda:", "mps:1", "", "cuda:-1", "cpu:", "cuda:²"])
def test_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match="device="):
        resolve_device(name)


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_algorithms(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        configure_arithmetic("bf16", deterministic, same_shapes=True)
        assert torch.are_deterministic_algorithms_enabled() == torch.backends.cudnn.deterministic == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == (":4096:8" if deterministic else None)
    finally:
        configure_arithmetic("auto")


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp32_strict", "bf16"])
def test_tensorfloat32_unless_strict(precision: str) -> None:
    """Matrix products and convolutions in float32 are rounded in the same way."""
    try:
        configure_arithmetic(precision)
        on = precision != "fp32_strict"
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == on
    finally:
        configure_arithmetic("auto")


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_a_cuda_device_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match=f"device={name}: torch sees no CUDA device"):
        resolve_device(name)


def test_cuda_index_out_of_range_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")


def test_resolve_precision() -> None:
    assert resolve_precision("fp16", CPU) == torch.float16
    assert resolve_precision("auto", torch.device("mps")) == torch.float32
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_bf16 = bool(flags.get("avx512_bf16"))
    assert resolve_precision("auto", CPU) == (torch.bfloat16 if has_bf16 else torch.float32)


@pytest.mark.parametrize(
    ("choice", "device", "worthwhile", "compiles"),
    [
        (None, "cpu", True, False),
        (None, "cuda", False, False),
        (None, "cuda", True, True),
        (True, "cuda", False, True),
        (True, "cpu", False, True),
        (False, "cuda", True, False),
    ],
)
def test_should_compile(
    choice: bool | None, device: str, worthwhile: bool, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_missing_for_compile", lambda device: None)
    assert should_compile(choice, torch.device(device), worthwhile) == compiles


def test_missing_requirements_of_compile_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Check that each requirement of torch.compile on CUDA is named if it is missing."""
    capability, headers = [(8, 0)], tmp_path
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.utils._triton, "has_triton_package", lambda: True)
    monkeypatch.setattr(devices.sysconfig, "get_path", lambda name: str(headers))
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/cc")
    cuda = torch.device("cuda")
    with pytest.raises(UserError, match=r"compile=true: torch.compile needs the header files of Python .* here"):
        should_compile(True, cuda, False)
    (headers / "Python.h").touch()
    assert should_compile(None, cuda, True)
    for name, replacement, missing in (
        ("which", lambda name: None, "a C compiler"),
        ("has_triton_package", lambda: False, "the package triton"),
    ):
        monkeypatch.setattr(devices.shutil if name == "which" else torch.utils._triton, name, replacement)
        assert not should_compile(None, cuda, True)
        assert missing in caplog.messages[-1]
    capability[0] = (6, 1)
    assert not should_compile(None, cuda, True)
    assert "compute capability 7.0" in caplog.messages[-1]


def test_compiling_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"compile=true: torch.compile needs a C\+\+ compiler here; install it, or"):
        should_compile(True, CPU, False)
