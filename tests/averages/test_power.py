"""The mathematics of power-function averages, against numerical integrals and rigorous bounds."""

import numpy as np
import pytest

from ddpm_cli.averages.power import Profile, exponent_of, fit, inner_products, lengths_within_reach, power_decay

LENGTHS = (0.01, 0.05, 0.1, 0.2, 0.279)


def profiles_of(count: int, interval: int = 10, lengths: tuple[float, ...] = (0.05, 0.1)) -> list[Profile]:
    """Return the profiles of `count` snapshots, of which the last is in the checkpoint."""
    numbers = range(1, count + 1)
    return [Profile(i * interval, exponent_of(length), i == count) for i in numbers for length in lengths]


@pytest.mark.parametrize("length", LENGTHS)
def test_length_is_the_standard_deviation_of_the_profile(length: float) -> None:
    gamma = exponent_of(length)
    x = (np.arange(200_000) + 0.5) / 200_000
    p = (gamma + 1) * x**gamma
    mean = (p * x).mean()
    assert np.sqrt((p * (x - mean) ** 2).mean()) == pytest.approx(length, rel=1e-5)


def test_exponents_of_the_paper() -> None:
    assert [exponent_of(length) for length in (0.05, 0.1)] == pytest.approx([16.97, 6.94], abs=0.005)


def test_first_update_copies_and_decays_multiply_to_a_power() -> None:
    gamma = exponent_of(0.1)
    assert power_decay(1, gamma) == 0
    assert np.prod([power_decay(step, gamma) for step in range(6, 11)]) == pytest.approx(0.5 ** (gamma + 1))


def test_inner_products_are_integrals() -> None:
    ours = [Profile(3, 0.5), Profile(10, 6.9), Profile(7, 17.0)]
    x = (np.arange(400_000) + 0.5) / 400_000 * 10
    values = np.stack([np.where(x < t, (g + 1) * x**g / float(t) ** (g + 1), 0) for t, g, _ in ours])
    assert inner_products(ours, ours) == pytest.approx(values @ values.T * 10 / 400_000, rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_coefficients_sum_to_one_and_tracked_lengths_are_exact(count: int) -> None:
    found = fit(profiles_of(count), [Profile(10 * count, exponent_of(length)) for length in (0.03, 0.05, 0.1, 0.2)])
    assert found.coefficients.sum(0) == pytest.approx(1, abs=1e-9)
    for column, place in ((1, -2), (2, -1)):
        expected = np.zeros(2 * count)
        expected[place] = 1
        assert found.coefficients[:, column] == pytest.approx(expected, abs=1e-6)
        assert found.residuals[column] == pytest.approx(0, abs=1e-6)


def test_residual_bounds_the_error() -> None:
    """By Cauchy-Schwarz, the error is at most residual * |profile| * |parameter - constant|, for any parameter."""
    steps, interval = 200, 10
    profiles = profiles_of(steps // interval, interval)
    lengths = (0.02, 0.03, 0.07, 0.15, 0.25)
    targets = [Profile(steps, exponent_of(length)) for length in lengths]
    found = fit(profiles, targets)
    path = np.random.default_rng(0).normal(size=(8, steps)).cumsum(1) + 5  # eight parameters

    def average(profile: Profile) -> np.ndarray:
        edges = np.clip(np.arange(steps + 1) / profile.step, 0, 1) ** (profile.exponent + 1)
        return path @ np.diff(edges)

    known = np.stack([average(profile) for profile in profiles], axis=1)
    deviation = np.sqrt(((path - path.mean(1, keepdims=True)) ** 2).sum(1))
    for i, target in enumerate(targets):
        error = np.abs(known @ found.coefficients[:, i] - average(target))
        norm = np.sqrt(inner_products([target], [target])[0, 0])
        assert (error <= found.residuals[i] * norm * deviation + 1e-9).all()
        assert found.residuals[i] < 0.1
        assert np.linalg.norm(error) < 0.1 * np.linalg.norm(path[:, -1] - average(target))  # that of the last step


@pytest.mark.parametrize(
    ("count", "reach"),
    [(1, "0.04 to 0.12"), (8, "0.035 to 0.215"), (20, "0.02 to 0.26"), (64, "0.015 to 0.275")],
)
def test_more_snapshots_reach_further(count: int, reach: str) -> None:
    assert lengths_within_reach(profiles_of(count), 10 * count, (0.05, 0.1)) == reach


def test_reach_has_gaps_between_distant_lengths() -> None:
    assert lengths_within_reach(profiles_of(1, lengths=(0.02, 0.2)), 10, (0.02, 0.2)) == "0.02, 0.185 to 0.215"
