"""A metric that compares mean images."""

from torch import Tensor


def mean_distance(samples: Tensor, reference: Tensor, seed: int) -> float:
    """Return the root mean square difference of the mean images, in levels of 0..255; lower is better.

    samples, reference: (N, C, H, W) uint8. seed: not used, because nothing is drawn.
    """
    difference = samples.double().mean(dim=0) - reference.double().mean(dim=0)
    return difference.square().mean().sqrt().item()
