"""Speed up the start of the processes under test, which import this module first.

It replaces two parts that take seconds to import and that these tests do not check:

- matplotlib: figures are empty files.
- torch._dynamo, which torch imports to wrap some methods of the optimizers in case a caller is compiled.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch.optim import Optimizer

from ddpm_cli.files import write


def _empty(*args: object) -> None:
    path = args[-1]
    assert isinstance(path, Path)
    write(path, b"")


class _Figures(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _empty


sys.modules["ddpm_cli.images.plots"] = _Figures("ddpm_cli.images.plots")
for method in vars(Optimizer).values():
    original = getattr(method, "__wrapped__", None)
    if original is not None:
        original.__dynamo_disable = original  # torch._compile.inner would otherwise create it with torch._dynamo
