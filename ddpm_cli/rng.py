"""Random streams with keys: a stream is a pure function of its key.

Nothing random in a run depends on what was drawn before, so a resumed run draws exactly what an uninterrupted one
does, and no generator state has to be saved.
"""

import hashlib

import torch


def seed_of(*key: int | str) -> int:
    """Return a seed in 0..2**63-1 for `key`, e.g. `seed_of(seed, "noise", step)`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator on `device` for `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_everything(*key: int | str) -> None:
    """Seed torch's global generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed_of(*key))
