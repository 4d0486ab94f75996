"""Noise of samples as a pure function of the seed, the number of the image and the number of the call."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = 2**32 - 1
STREAM = 0x696D6167
"""The last word of all counters of this module, which other uses of the seed may not have."""
CPU_CACHE = 2**16
"""Random numbers that are computed at once on a CPU: the words fit into its cache."""
DEVICE_MEMORY = 2**24
"""Random numbers that are computed at once on other devices, which takes 300 MB."""

Words = tuple[Any, ...]
"""Four arrays of 32-bit words in int64, of torch or of numpy."""


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return four random 32-bit words for each counter by Philox4x32-10 (Salmon et al. 2011, section 3.3).

    Args:
        counter: four words, of shapes that can be broadcast.
        key: two words.

    Returns:
        Four words, the same integers for torch and numpy and on every device.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2**64, as signed numbers
        c0, c2 = (product1 >> 32) ^ c1, (product0 >> 32) ^ c3
        c0 ^= k0
        c2 ^= k1
        c0 &= LOW  # also removes the sign, with which the shift has filled the upper half
        c2 &= LOW
        c1, c3 = product1, product0  # their upper halves are removed by the masks of the next round
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return c0, c1 & LOW, c2, c3 & LOW


def normals(words: Words) -> Any:
    """Return standard normal numbers (4, ...) float32 for words (...), by the method of Box and Muller (1958).

    The uniform numbers are the words + 1 in units of 2**-32, so no number is larger than 6.67. For torch and numpy and
    on different devices the results agree to 1e-6.
    """
    xp = np if isinstance(words[0], np.ndarray) else torch
    radii, angles = xp.stack(words[:2]) + 1, xp.stack(words[2:])
    if xp is np:
        radii, angles = radii.astype(np.float32), angles.astype(np.float32)
    else:
        radii, angles = radii.float(), angles.float()
    r = xp.sqrt(xp.log(radii * 2**-32) * -2)
    theta = angles * (2 * math.pi * 2**-32)
    return xp.concatenate([r * xp.cos(theta), r * xp.sin(theta)])


class ImageNoise:
    """Standard normal noise that depends on the seed and the number of an image, not on the batch.

    It is computed on the device, for several calls at once if these are small, since each operation has a cost.
    """

    def __init__(self, seed: int, images: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.key = (seed & LOW, seed >> 32)
        self.shape, self.device = shape, device
        numbers = math.prod(shape)
        on_cpu = device.type == "cpu"
        at_once = max(1, CPU_CACHE // numbers) if on_cpu else len(images)
        self.images = torch.tensor(images, device=device).view(-1, 1).split(at_once)
        self.most_calls = max(1, (CPU_CACHE if on_cpu else DEVICE_MEMORY) // (len(images) * numbers))
        self._next_call = 0
        self._ahead: Iterator[Tensor] = iter(())

    def __call__(self) -> Tensor:
        """Return new noise (images, *shape), float32 on the device."""
        if (noise := next(self._ahead, None)) is None:
            # One, then one, two, four, ...: many samplers need noise only once.
            calls = range(self._next_call, self._next_call + min(max(1, self._next_call), self.most_calls))
            self._next_call = calls.stop
            self._ahead = iter(torch.cat([self._draw(calls, images) for images in self.images], dim=1))
            noise = next(self._ahead)
        return noise

    def _draw(self, calls: range, images: Tensor) -> Tensor:
        """Return the noise of some calls for some images, (calls, images, *shape)."""
        count = math.prod(self.shape)
        place = torch.arange(-(-count // 4), device=self.device)
        call = torch.arange(calls.start, calls.stop, device=self.device).view(-1, 1, 1)
        if self.device.type == "cpu":  # where numpy takes half the time of torch, and needs no other thread
            words = philox((place.numpy(), call.numpy(), images.numpy(), STREAM), self.key)
            numbers = torch.from_numpy(normals(words))
        else:
            numbers = normals(philox((place, call, images, STREAM), self.key))
        numbers = numbers.movedim(0, -2).flatten(-2)
        return numbers[..., :count].unflatten(-1, self.shape)
