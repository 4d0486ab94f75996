import pytest

from tests.benchmarks.measure import Spread, alternate, rate, spread, times_faster


def test_median_and_quartiles() -> None:
    assert spread([5, 1, 3, 2, 4]) == Spread(3, 2, 4)
    assert spread([7]) == Spread(7, 7, 7)


def test_systems_alternate_after_warm_up() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = alternate({name: lambda name=name: work(name) for name in "abc"}, rounds=2, warm_up=1)
    assert order == list("abcabcabc")
    assert found == {"a": [4, 7], "b": [5, 8], "c": [6, 9]}


def test_ratios_are_computed_per_round() -> None:
    """Check that a round in which the machine is twice as slow does not change the ratios."""
    assert times_faster([1, 2, 1], [3, 6, 3]) == Spread(3, 3, 3)
    assert rate(10, [2, 2, 2]).median == pytest.approx(5)
