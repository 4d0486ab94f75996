import torch

from ddpm_cli import rng


def test_a_stream_is_a_function_of_its_key() -> None:
    first = torch.rand(5, generator=rng.generator(7, "noise", 3))
    torch.rand(100)  # other use of the global generator must not matter
    again = torch.rand(5, generator=rng.generator(7, "noise", 3))
    assert torch.equal(first, again)


def test_keys_differ_in_every_part() -> None:
    seeds = {rng.seed_of(*key) for key in [(1, "a", 2), (2, "a", 2), (1, "b", 2), (1, "a", 3), (1, "a"), ("1", "a", 2)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
