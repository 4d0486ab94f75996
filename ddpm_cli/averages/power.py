"""Power-function averages and their least-squares reconstruction (Karras et al. 2024, arXiv:2312.02696).

The average after t steps with exponent gamma weighs the parameters of step s with the integral over (s - 1, s] of its
profile, p(x) = (gamma + 1) x**gamma / t**(gamma + 1) on [0, t]. Its relative length is the standard deviation of p
divided by t. Everything here is computed in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm_cli.config.averages import MAX_LENGTH

Array = NDArray[np.float64]

MAX_RESIDUAL = 0.1
"""Largest residual of a reconstruction, as a fraction of the norm of the profile that is asked for.

If the parameters are a constant plus white noise, the variance of the reconstruction's error is then at most 1% of the
variance that the average itself has. Parameters that change slowly have smaller errors.
"""
PENALTY = 1e-3
"""Weight of the squared coefficients of rounded snapshots, which multiply their rounding errors.

In a network that was trained for 1280 steps with a snapshot every 10 steps, the error of length 0.02 is 3.6e-4 of the
norm of the weights, and 1.3e-3 without a penalty.
"""
GRID = tuple(round(0.005 * i, 3) for i in range(1, round(MAX_LENGTH / 0.005) + 1))[:-1]
"""Lengths at which it is tested what can be reconstructed."""


class Profile(NamedTuple):
    """The profile of the average after `step` steps with an exponent. exact: stored without rounding."""

    step: int
    exponent: float
    exact: bool = False


def exponent_of(length: float) -> float:
    """Return gamma for a relative length in [0.001, 0.28).

    The length is (gamma + 1)**(1/2) / ((gamma + 2) (gamma + 3)**(1/2)), and gamma the largest root of a cubic
    (section 3.1 and algorithm 2).
    """
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_decay(step: int, exponent: float) -> float:
    """Return the decay at `step` (1 is the first update): beta(t) = (1 - 1/t)**(gamma + 1), section 3.1."""
    return float((1 - 1 / step) ** (exponent + 1))


def inner_products(ours: Sequence[Profile], theirs: Sequence[Profile]) -> Array:
    """Return the integrals of products of profiles, (len(ours), len(theirs)), in closed form (algorithm 3)."""
    step, exponent = (np.array(column, dtype=np.float64)[:, None] for column in _columns(ours))
    other_step, other = (np.array(column, dtype=np.float64)[None, :] for column in _columns(theirs))
    ratio = (step / other_step) ** np.where(step < other_step, other, -exponent)
    products: Array = (exponent + 1) * (other + 1) * ratio / ((exponent + other + 1) * np.maximum(step, other_step))
    return products


def _columns(profiles: Sequence[Profile]) -> tuple[list[int], list[float]]:
    return [profile.step for profile in profiles], [profile.exponent for profile in profiles]


class Fit(NamedTuple):
    """Coefficients (profiles, targets) of reconstructions, and the residual of each target.

    A residual is the norm of the difference of the profiles as a fraction of that of the target.
    """

    coefficients: Array
    residuals: Array

    @property
    def accurate(self) -> NDArray[np.bool_]:
        """Whether each target has a small residual."""
        return self.residuals <= MAX_RESIDUAL


def fit(profiles: Sequence[Profile], targets: Sequence[Profile]) -> Fit:
    """Return the combinations of `profiles` that are closest to each target in the L2 norm (section 3.2).

    Unlike those of the paper, the coefficients sum to 1, so that parameters which do not change stay as they are. This
    matters where few snapshots are known: the two of one step would otherwise shrink them by up to 5%. The coefficients
    of rounded snapshots have a small penalty.
    """
    gram, mixed = inner_products(profiles, profiles), inner_products(profiles, targets)
    norms = np.sqrt(np.array([inner_products([target], [target])[0, 0] for target in targets]))
    scale = 1 / np.sqrt(np.diag(gram))  # of the unknowns, so that profiles of different norms are comparable
    count = len(profiles)
    system = np.zeros((count + 1, count + 1))  # with a Lagrange multiplier
    rounded = np.array([not profile.exact for profile in profiles])
    system[:count, :count] = gram * np.outer(scale, scale) + PENALTY * np.diag(rounded)
    system[:count, count] = system[count, :count] = scale / scale.max()
    right = np.vstack([mixed * scale[:, None], np.full((1, len(targets)), 1 / scale.max())])
    solved = np.linalg.lstsq(system, right, rcond=1e-14)[0][:count]
    coefficients = solved * scale[:, None]
    squares = norms**2 - 2 * (coefficients * mixed).sum(0) + (coefficients * (gram @ coefficients)).sum(0)
    return Fit(coefficients, np.sqrt(np.maximum(squares, 0)) / norms)


def lengths_within_reach(profiles: Sequence[Profile], step: int, tracked: Sequence[float]) -> str:
    """Return the relative lengths after `step` that `profiles` can represent, such as `0.02 to 0.25`."""
    grid = sorted({*GRID, *tracked})
    accurate = fit(profiles, [Profile(step, exponent_of(length)) for length in grid]).accurate
    spans: list[list[float]] = []
    for before, (length, ok) in zip([False, *accurate], zip(grid, accurate, strict=True), strict=False):
        if ok:
            spans[-1].append(length) if before else spans.append([length])
    ends = [(span[0], span[-1]) for span in spans]
    return ", ".join(f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in ends)
