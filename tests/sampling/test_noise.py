"""The noise of samples: Philox by its published vectors, and a function of seed, image and call."""

import math

import numpy as np
import pytest
import torch

from ddpm_cli.sampling import noise
from ddpm_cli.sampling.noise import ImageNoise, normals, philox

CPU = torch.device("cpu")
ONES = 0xFFFFFFFF


@pytest.mark.parametrize("array", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ONES] * 4, [ONES] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: str, array: type) -> None:
    """The vectors of the authors' library Random123 for philox4x32-10."""
    words = philox(tuple(array([word]) for word in counter), (key[0], key[1]))
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


def test_numbers_are_standard_normal() -> None:
    numbers = ImageNoise(3, range(500), (3, 16, 16), CPU)().flatten().double()
    n = len(numbers)
    assert abs(numbers.mean()) < 4 / n**0.5
    assert abs(numbers.var() - 1) < 4 * (2 / n) ** 0.5
    in_order = numbers.sort().values
    cdf = 0.5 * (1 + torch.erf(in_order / 2**0.5))
    steps = torch.arange(n) / n
    assert (cdf - steps).abs().max() < 1.95 / n**0.5  # Kolmogorov and Smirnov: exceeded once in 1000
    neighbours = (numbers[1:] * numbers[:-1]).mean()
    assert abs(neighbours) < 4 / n**0.5


def test_torch_and_numpy_agree() -> None:
    words = torch.randint(2**32, (4, 10_000), generator=torch.Generator().manual_seed(0)).unbind()
    of_torch, of_numpy = normals(words), normals(tuple(word.numpy() for word in words))
    assert of_torch.dtype == torch.from_numpy(of_numpy).dtype == torch.float32
    assert torch.allclose(of_torch, torch.from_numpy(of_numpy), rtol=0, atol=1.5e-6)


@pytest.mark.parametrize("word", [0, 1, 2**31, ONES])
def test_every_word_gives_a_finite_number(word: int) -> None:
    words = torch.tensor([word])
    found = normals((words, words, words, words))
    assert found.isfinite().all()
    assert found.abs().max() <= math.sqrt(2 * math.log(2) * 32)


def test_noise_of_an_image_does_not_depend_on_the_batch() -> None:
    large, small = ImageNoise(7, range(300), (1, 17, 17), CPU), ImageNoise(7, range(298, 299), (1, 17, 17), CPU)
    for _ in range(6):
        assert torch.equal(large()[298], small()[0])


def test_numbers_that_are_drawn_ahead_are_those_of_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = ImageNoise(7, [4, 2], (3,), CPU)
    monkeypatch.setattr(noise, "CPU_CACHE", 1)
    each = ImageNoise(7, [4, 2], (3,), CPU)
    assert (ahead.most_calls, each.most_calls) == (10922, 1)
    for _ in range(9):
        assert torch.equal(ahead(), each())


def test_all_of_the_seed_and_every_image_and_call_matters() -> None:
    streams = [ImageNoise(seed, [image], (4,), CPU) for seed in (1, 2, 1 + 2**32, 1 + 2**62) for image in (0, 1, 336)]
    drawn = torch.stack([stream() for stream in streams] + [stream() for stream in streams])
    assert len(drawn.unique(dim=0)) == 24


def test_no_two_of_200_000_images_have_the_same_first_128_bits() -> None:
    words = philox((torch.tensor(0), torch.tensor(0), torch.arange(200_000), torch.tensor(noise.STREAM)), (1964, 0))
    assert len(torch.stack(words, dim=1).unique(dim=0)) == 200_000


def test_images_that_once_were_the_same() -> None:
    """torch seeds its CPU generator with 32 bits: images 336 and 1056 of this seed had the same noise."""
    both = ImageNoise(1964, [336, 1056], (1, 8, 8), CPU)()
    assert abs(torch.corrcoef(both.flatten(1))[0, 1]) < 0.5
