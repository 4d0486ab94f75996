import numpy as np
import torch
from sklearn.datasets import make_swiss_roll

from ddpm_cli.config import SwissRoll
from ddpm_cli.data.sources import load_examples
from tests.distances import sliced_wasserstein


def test_swiss_roll_has_the_distribution_of_scikit_learn() -> None:
    ours = load_examples(SwissRoll(points=20_000, noise=1.0), train=True).values
    theirs, _ = make_swiss_roll(20_000, noise=1.0, random_state=0)
    theirs = torch.from_numpy(theirs[:, [0, 2]] / 10).float()
    again, _ = make_swiss_roll(20_000, noise=1.0, random_state=1)
    floor = sliced_wasserstein(theirs, torch.from_numpy(again[:, [0, 2]] / 10).float())
    assert sliced_wasserstein(ours, theirs) < 3 * floor
    assert ours.dtype == torch.float32
    assert ours.shape == (20_000, 2)


def test_points_without_noise_lie_on_the_spiral() -> None:
    x, y = load_examples(SwissRoll(points=500, noise=0.0), train=True).values.double().numpy().T
    radius = 10 * np.hypot(x, y)
    assert ((1.5 * np.pi <= radius + 1e-5) & (radius <= 4.5 * np.pi + 1e-5)).all()
    assert np.allclose(np.cos(radius), 10 * x / radius, atol=1e-4)


def test_splits_are_independent_and_reproducible() -> None:
    roll = SwissRoll(points=100, noise=0.5)
    train, test = load_examples(roll, train=True), load_examples(roll, train=False)
    assert not torch.equal(train.values, test.values)
    assert torch.equal(train.values, load_examples(roll, train=True).values)
    assert train.labels is None
