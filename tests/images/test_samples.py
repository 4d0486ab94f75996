import numpy as np
import torch

from ddpm_cli.images.plots import scatter
from ddpm_cli.images.png_gif import grid, labelled_grid, to_uint8
from ddpm_cli.images.samples import picture


def test_images_are_drawn_as_a_grid() -> None:
    images = torch.linspace(-1.5, 1.5, 3 * 64).view(3, 1, 8, 8)
    assert np.array_equal(picture(images), grid(to_uint8(images)))


def test_images_with_labels_are_drawn_as_a_labelled_grid() -> None:
    images = torch.linspace(-1.5, 1.5, 3 * 64).view(3, 1, 8, 8)
    assert np.array_equal(picture(images, ["a", "b", "a"]), labelled_grid(to_uint8(images), ["a", "b", "a"]))


def test_images_of_one_class_are_a_plain_grid() -> None:
    images = torch.randn(3, 1, 4, 4)
    assert np.array_equal(picture(images, ["a", "a", "a"]), grid(to_uint8(images)))


def test_points_are_drawn_as_a_scatter_plot() -> None:
    points = torch.tensor([[0.5, 2.0], [0.0, 1.0]])
    assert np.array_equal(picture(points), scatter(points))
