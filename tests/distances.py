"""Distances of sets of points, for tests."""

import math

import torch
from torch import Tensor


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 200) -> float:
    """The mean over directions of the Wasserstein-1 distance of the projections of two equally large sets (N, 2)."""
    angles = math.pi * torch.rand(projections, generator=torch.Generator().manual_seed(0))
    directions = torch.stack([angles.cos(), angles.sin()]).to(a.dtype)
    sorted_a, sorted_b = ((x @ directions).sort(dim=0).values for x in (a, b))
    return float((sorted_a - sorted_b).abs().mean())
