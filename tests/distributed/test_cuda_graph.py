"""CudaGraphs: a function replayed as a CUDA graph."""

import pytest
import torch
from torch import Tensor

from ddpm_cli.distributed.cuda_graph import WARM_UP_CALLS, CudaGraphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_replayed_calls_continue_the_eager_calls() -> None:
    total = torch.zeros(3, device="cuda")

    def add(twice: bool, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        total.add_(x * (2 if twice else 1))
        return (total + 1,)

    graph, count = CudaGraphs(add), WARM_UP_CALLS + 4
    for i in range(count):
        (out,) = graph(False, (torch.full((3,), float(i), device="cuda"), None))
        assert torch.equal(out, torch.full_like(out, i * (i + 1) / 2 + 1))
    for _ in range(count):
        (out,) = graph(True, (torch.ones(3, device="cuda"), None))
    assert torch.equal(out, torch.full_like(out, count * (count - 1) / 2 + 2 * count + 1))
