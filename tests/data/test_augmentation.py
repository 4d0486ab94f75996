"""Augmented images, compared with a smooth function at the places that the labels imply, and with exact cases."""

import cmath
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_cli.data.augmentation import SYM6, augment

NEVER = 0.99
SIDES = (24, 32)  # height, width


def numbers(**given: float) -> tuple[Tensor, Tensor]:
    """Return the random numbers of one image for which only the given transformations apply."""
    uniform, normal = torch.full((1, 11), NEVER), torch.zeros(1, 4)
    gates = {"mirror": 0, "upside_down": 1, "scale": 2, "turn": 3, "stretch": 4, "x": 5, "y": 5}
    for name, value in given.items():
        if name in gates:
            uniform[0, gates[name]] = 0
        match name:
            case "mirror" | "upside_down":
                uniform[0, 6 + gates[name]] = 0 if value else NEVER
            case "turn" | "direction":
                uniform[0, 8 if name == "turn" else 9] = (value / math.pi + 1) / 2
                uniform[0, 10] = 0 if name == "direction" else uniform[0, 10]
            case _:
                normal[0, ["scale", "stretch", "x", "y"].index(name)] = value
    return uniform, normal


def smooth(place: complex) -> float:
    """Return the value of a picture without symmetries at a place in pixels from its centre."""
    lobes = ((1.0, 0), (-0.7, 4 + 1j), (0.5, -2 - 4j))
    return sum(height * math.exp(-(abs(place - centre) ** 2) / 18) for height, centre in lobes)


def picture(sides: tuple[int, int]) -> Tensor:
    height, width = sides
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    return torch.tensor([[smooth(complex(x, y)) for x in columns] for y in rows])[None, None].float()


def seen_through(labels: list[float], sides: tuple[int, int]) -> Tensor:
    """Return `picture` as it is described by labels without mirroring; NaN where it shows what is beyond an edge."""
    _, _, scale, cos, sin, along, across, x, y = labels
    height, width = sides
    stretch, direction = math.hypot(along, across), math.atan2(across, along)
    image = torch.zeros(1, 1, height, width)
    for row in range(height):
        for column in range(width):
            place = complex(column - (width - 1) / 2 - x * width / 8, row - (height - 1) / 2 - y * height / 8)
            place *= cmath.exp(1j * direction)
            place = complex(place.real * 2 ** (-0.2 * stretch), place.imag * 2 ** (0.2 * stretch))
            place *= cmath.exp(-1j * direction) * complex(cos + 1, sin) * 2 ** (-0.2 * scale)
            inside = abs(place.real) <= (width - 1) / 2 and abs(place.imag) <= (height - 1) / 2
            image[0, 0, row, column] = smooth(place) if inside else math.nan
    return image


@pytest.mark.parametrize(
    "given",
    [
        {"scale": 1.0},
        {"scale": -1.5},
        {"turn": 0.7},
        {"stretch": 1.0},
        {"stretch": 1.2, "direction": 0.5},
        {"x": 0.4, "y": -0.7},
        {"scale": -0.5, "turn": -2.1, "stretch": 0.8, "direction": -0.4, "x": -0.3, "y": 0.2},
    ],
    ids=" ".join,
)
def test_image_is_what_its_labels_describe(given: dict[str, float]) -> None:
    image, labels = augment(picture(SIDES), *numbers(**given), 0.5, 0.5)
    assert labels.shape == (1, 9)
    assert not torch.allclose(image, picture(SIDES), atol=0.05)
    expected = seen_through(labels[0].tolist(), SIDES)
    inside = ~expected.isnan()
    assert inside.float().mean() > 0.4
    assert torch.allclose(image[inside], expected[inside], atol=0.02)
    assert labels[0, [2, 7, 8]].tolist() == pytest.approx([given.get(name, 0.0) for name in ("scale", "x", "y")])
    turn, stretch, direction = (given.get(name, 0.0) for name in ("turn", "stretch", "direction"))
    angles = [math.cos(turn) - 1, math.sin(turn), stretch * math.cos(direction), stretch * math.sin(direction)]
    assert labels[0, 3:7].tolist() == pytest.approx(angles, abs=1e-6)


def test_mirroring_is_exact() -> None:
    noise = torch.rand(1, 3, 6, 5)
    for given, sides, labels in (
        ({"mirror": 1.0}, [3], [1.0, 0.0]),
        ({"upside_down": 1.0}, [2], [0.0, 1.0]),
        ({"mirror": 1.0, "upside_down": 1.0}, [2, 3], [1.0, 1.0]),
        ({"mirror": 0.0}, [], [0.0, 0.0]),
    ):
        image, described = augment(noise, *numbers(**given), 0.5, 0.5)
        assert torch.equal(image, noise.flip(sides))
        assert described[0].tolist() == [*labels, *[0.0] * 7]


@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -2), (-5, 4)])
def test_shift_by_whole_pixels_is_exact_and_reflects_the_edges(x: int, y: int) -> None:
    noise = torch.rand(1, 2, 8, 16)
    image, _ = augment(noise, *numbers(x=x / 2, y=float(y)), 0.5, 0.5)  # an eighth of the side is 2 and 1 pixels
    padded = torch.nn.functional.pad(noise, (7, 7, 7, 7), mode="reflect")
    assert torch.allclose(image, padded[:, :, 7 - y : 15 - y, 7 - x : 23 - x], atol=1e-4)


def test_filter_is_an_orthogonal_wavelet() -> None:
    for shift in range(0, len(SYM6), 2):
        product = np.dot(SYM6[shift:], SYM6[: len(SYM6) - shift])
        assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-9)
    assert sum(SYM6) == pytest.approx(math.sqrt(2))


def test_each_transformation_has_its_probability_and_the_others_leave_images_as_they_are() -> None:
    torch.manual_seed(0)
    count, p = 4000, 0.3
    images = torch.rand(count, 1, 4, 4)
    augmented, labels = augment(images, torch.rand(count, 11), torch.randn(count, 4), p, 1.0)
    shares = (labels != 0).float().mean(dim=0)
    expected = torch.tensor([0.5, p / 2, p, p, p, p, p / 2, p, p])
    assert torch.allclose(shares, expected, atol=0.04)
    assert torch.allclose(labels[labels[:, 2] != 0, 2].std(), torch.tensor(1.0), atol=0.1)
    same = ~labels.any(dim=1)
    assert 0.05 < same.float().mean() < 0.12  # 0.5 * 0.85 * 0.7**4 is 0.10
    assert torch.equal(augmented[same], images[same])
    assert not (augmented == images).flatten(1).all(dim=1)[~same].any()


def test_image_depends_on_its_own_numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images, uniform, normal = torch.rand(5, 3, 8, 8), torch.rand(5, 11), torch.randn(5, 4)
    together, labels = augment(images, uniform, normal, 0.8, 0.8)
    alone = [augment(*(part[i : i + 1] for part in (images, uniform, normal)), 0.8, 0.8) for i in range(5)]
    assert torch.allclose(together, torch.cat([image for image, _ in alone]), atol=1e-5)
    assert torch.equal(labels, torch.cat([label for _, label in alone]))
    monkeypatch.setattr("ddpm_cli.data.augmentation.VALUES_AT_ONCE", 3 * 44 * 44 * 2)  # two images at once
    assert torch.allclose(augment(images, uniform, normal, 0.8, 0.8)[0], together, atol=1e-5)
