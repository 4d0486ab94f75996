"""Resolve the device, the number of processes, the precision and the compilation that a config asks for."""

import logging
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from ddpm_cli.errors import UserError, check
from ddpm_cli.files import cache_folder

log = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "out of memory",  # MPS
    "can't allocate memory",  # the CPU
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "nable to find an engine",  # cuDNN, which found none that fits
)
"""Parts of error messages that say that the memory is full."""
IMAGES_WORTH_COMPILING = 1_280_000
"""Compiling takes one to two minutes; on an H200 it saves 10 ms a step of the default network (batch 128)."""


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is CUDA, else MPS, else the CPU. Raise `UserError` if it is not available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    ok = name in ("cpu", "cuda", "mps") or (kind == "cuda" and re.fullmatch("[0-9]{1,3}", index) is not None)
    check(ok, "device", name, "auto, cpu, cuda, cuda:<number> or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch sees no CUDA device here; use device=auto or device=cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"device={name}: must be cuda:0 to cuda:{last}, the devices that torch sees here")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device={name}: torch sees no MPS device here; use device=auto or device=cpu")
    return torch.device(name)


def processes_of(devices: int | str, device: str) -> int:
    """Return the number of processes on this machine, one for each device. Raise `UserError` if there are too few."""
    on = resolve_device(device)
    cuda = torch.cuda.device_count() if on.type == "cuda" and on.index is None else 1
    if devices == "auto":
        return cuda
    count = int(devices)
    if count > 1 and (on.type == "mps" or on.index is not None):
        raise UserError(f"devices={count}: device={device} is a single one; use devices=1")
    if on.type == "cuda" and count > cuda:
        raise UserError(f"devices={count}: must be at most {cuda}, the CUDA devices that torch sees here; or use auto")
    return count


def precision_name(name: str, device: torch.device) -> str:
    """Return the precision `name`; `auto` is bf16 if the hardware supports it, else fp32."""
    if name == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    return name


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that the network computes in."""
    dtypes = {"fp32": torch.float32, "fp32_strict": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return dtypes[precision_name(name, device)]


def configure_arithmetic(precision: str, deterministic: bool = False, same_shapes: bool = False) -> None:
    """Set how torch computes in this process. Must be called before the first computation on CUDA.

    float32 matrix products and convolutions use TensorFloat-32 on CUDA, with 10 bits of mantissa, unless `precision`
    is fp32_strict.

    Args:
        deterministic: use deterministic algorithms only, so that a run repeats bit for bit on CUDA too. torch raises
            an error for an operation without one.
        same_shapes: all steps have inputs of the same shapes, so cuDNN may time its algorithms and choose the fastest
            one, which may be another one each time.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32_strict"
    torch.backends.cudnn.benchmark = same_shapes and not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports torch._inductor: a second
        torch.use_deterministic_algorithms(deterministic)
    # No result depends on uninitialised memory, and filling it takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that the memory is full. Not all devices and libraries have an exception for it."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def should_compile(choice: bool | None, device: torch.device, worthwhile: bool) -> bool:
    """Return whether to compile a network; None means on CUDA, if it is `worthwhile`.

    Compiled code is kept in the cache folder for other runs. torch.compile needs a compiler and Python's headers, on
    CUDA also Triton. Without them, the network is not compiled, which is logged; with `choice=True` raise `UserError`.
    """
    if choice is False or (choice is None and (device.type != "cuda" or not worthwhile)):
        return False
    missing = _missing_for_compile(device)
    if missing is None:
        log.info("The network is compiled at its first call, which takes one to two minutes.")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))  # by default in /tmp
        return True
    if choice:
        raise UserError(f"compile=true: torch.compile needs {missing} here; install it, or use compile=false")
    log.warning("the network is not compiled: torch.compile needs %s here; training is slower without", missing)
    return False


def _missing_for_compile(device: torch.device) -> str | None:
    """Return what torch.compile needs and does not find for a device, or None."""
    from torch.utils._triton import has_triton_package

    cuda = device.type == "cuda"
    if cuda and torch.cuda.get_device_capability(device)[0] < 7:
        return "a GPU of compute capability 7.0 or newer"
    if cuda and not has_triton_package():
        return "the package triton"
    cxx = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang") if cuda else (cxx,)
    if not any(map(shutil.which, compilers)):
        return "a C compiler" if cuda else "a C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "the header files of Python (python3-dev)"
    return None


def _has_bf16(device: torch.device) -> bool:
    match device.type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            # There is no public function for this. If the private one is missing, the slower float32 is always correct.
            ask = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
            return bool(ask())
    return False
