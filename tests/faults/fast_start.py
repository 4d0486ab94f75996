"""Speed up the start of the processes under test, which import this module first.

It replaces two parts that take seconds to import and that these tests do not check:

- matplotlib: figures are empty files.
- torch._dynamo, which the optimizers call in case a caller is compiled, and which counting FLOPs imports.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from ddpm_cli.files import write
from ddpm_cli.training import summary_table


def _empty(*args: object) -> None:
    path = args[-1]
    assert isinstance(path, Path)
    write(path, b"")


class _Figures(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _empty


summary_table._gflops = lambda config, classes: 0.0
sys.modules["ddpm_cli.images.plots"] = _Figures("ddpm_cli.images.plots")
dynamo = ModuleType("torch._dynamo")
dynamo.disable = lambda function, recursive, wrapping: function  # type: ignore[attr-defined]
dynamo.graph_break = lambda: None  # type: ignore[attr-defined]
sys.modules["torch._dynamo"] = torch._dynamo = dynamo
