"""The systems that are compared. Each trains a network for 28x28 gray images on the same data."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddpm_cli.distributed.devices import resolve_precision

REFERENCE, OURS = "reference", "ddpm-cli"


class System(Protocol):
    """A training system. `step` includes loading the batch, the update and reading the loss with `.item()`."""

    @property
    def network(self) -> nn.Module: ...

    def step(self) -> None: ...

    def save(self, folder: Path) -> None:
        """Write what is needed to resume into an empty folder."""


def systems(data: Path, batch_size: int, extras: bool = True) -> dict[str, partial[System]]:
    """Return functions that build the systems, by name, in fp32 and, if the CPU supports it, in bf16.

    Without `extras`, only the systems that need no other package. Call each function in its own process, because
    accelerate supports one precision per process.
    """
    precisions = ["fp32", "bf16"] if has_bf16() else ["fp32"]
    found: dict[str, partial[System]] = {REFERENCE: partial(_reference, data, batch_size)}
    for precision in precisions:
        typed = ("experiment=annotated", f"train.batch_size={batch_size}", f"train.precision={precision}")
        found[_named(OURS, precision)] = recipe(data, typed)
    if extras:
        for name, build in (("denoising-diffusion-pytorch", _lucidrains), ("diffusers", _diffusers)):
            for precision in precisions:
                found[_named(name, precision)] = partial(build, data, batch_size, precision)
    return found


def recipe(data: Path, typed: Sequence[str]) -> partial[System]:
    """Return a function that builds the run of `ddpm-train <typed>`."""
    return partial(_ours, data, typed)


def has_bf16() -> bool:
    """Return whether train.precision=auto is bf16 on this CPU."""
    return resolve_precision("auto", torch.device("cpu")) == torch.bfloat16


def flops(system: System) -> int:
    """Return the floating-point operations of a step, forward and backward, by torch's counter.

    Attention runs as matrix products, because the counter supports these.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        system.step()
    return int(counter.get_total_flops())


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _named(name: str, precision: str) -> str:
    return f"{name} {precision}"


def _reference(data: Path, batch_size: int) -> System:
    from tests.benchmarks.systems.reference import Reference

    return Reference(data, batch_size)


def _ours(*args: Any) -> System:
    from tests.benchmarks.systems.ours import Ours

    return Ours(*args)


def _lucidrains(*args: Any) -> System:
    from tests.benchmarks.systems.lucidrains import Lucidrains

    return Lucidrains(*args)


def _diffusers(*args: Any) -> System:
    from tests.benchmarks.systems.diffusers_example import DiffusersExample

    return DiffusersExample(*args)
