"""Random streams with keys: a stream is a pure function of its key.

Nothing random in a run depends on what was drawn before, so a resumed run draws exactly what an uninterrupted one
does, and no generator state has to be saved.
"""

import hashlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

WORDS = slice(24, 24 + 624 * 8)
"""Bytes of the state of a CPU generator that are the words of its Mersenne Twister, each in 8 bytes."""


def seed_of(*key: int | str) -> int:
    """Return a seed in 0..2**63-1 for `key`, e.g. `seed_of(seed, "noise", step)`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator on `device` for `key`."""
    made = torch.Generator(device).manual_seed(seed_of(*key))
    if made.device.type == "cpu":
        made.set_state(_cpu_state(key))
    return made


def seed_everything(*key: int | str) -> None:
    """Seed torch's global generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed_of(*key))
    torch.set_rng_state(_cpu_state(key))


def _cpu_state(key: tuple[int | str, ...]) -> Tensor:
    """Return the state of a CPU generator that depends on all of the key.

    torch seeds its Mersenne Twister with 32 bits, so that two of 50,000 streams would be the same with a probability
    of 0.25. Here all its words are a hash of the key.
    """
    state = _seeded_state().clone()
    words = np.frombuffer(hashlib.shake_128(repr(key).encode()).digest(624 * 4), np.uint32)
    state[WORDS] = torch.from_numpy(words.astype(np.uint64).view(np.uint8))
    return state


@cache
def _seeded_state() -> Tensor:
    """Return the state of a generator that was seeded with 0. Raise `RuntimeError` if torch has changed its layout."""
    state = torch.Generator().manual_seed(0).get_state()
    words = state[WORDS].numpy().view(np.uint64)
    if not np.array_equal(words, np.random.RandomState(0).get_state(legacy=False)["state"]["key"]):
        raise RuntimeError(f"torch {torch.__version__}: the state of torch.Generator has another layout")
    return state
