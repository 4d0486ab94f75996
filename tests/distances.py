"""Distance between two sets of points."""

import math

import torch
from torch import Tensor


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 200) -> float:
    """Return the sliced Wasserstein-1 distance of two sets of N points (N, 2): the mean over projections."""
    angles = math.pi * torch.rand(projections, generator=torch.Generator().manual_seed(0))
    directions = torch.stack([angles.cos(), angles.sin()]).to(a.dtype)
    sorted_a, sorted_b = ((x @ directions).sort(dim=0).values for x in (a, b))
    return float((sorted_a - sorted_b).abs().mean())
