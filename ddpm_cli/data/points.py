"""Datasets of points in the plane, generated rather than read."""

import math

import torch

from ddpm_cli import rng
from ddpm_cli.config import SwissRoll
from ddpm_cli.data.table import Examples


def swiss_roll(dataset: SwissRoll, train: bool) -> Examples:
    """Return `dataset.points` points of a Swiss roll seen from its end, a tenth of the size of scikit-learn's.

    (u cos u, u sin u) / 10 for u uniform in [1.5 pi, 4.5 pi] (scikit-learn's make_swiss_roll, without the axis of
    the roll), each coordinate with Gaussian noise of standard deviation dataset.noise / 10. The test split is as
    large, and independent.
    """
    generator = rng.generator("swiss_roll", "train" if train else "test")
    u = 1.5 * math.pi * (1 + 2 * torch.rand(dataset.points, generator=generator, dtype=torch.float64))
    noise = dataset.noise * torch.randn(dataset.points, 2, generator=generator, dtype=torch.float64)
    points = u[:, None] * torch.stack([u.cos(), u.sin()], dim=1) + noise
    return Examples((points / 10).float())
