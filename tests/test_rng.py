import numpy as np
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


def test_streams_depend_on_all_of_their_key() -> None:
    """The seeds of these two keys agree in 32 bits, all that torch's own seeding of a CPU generator uses."""
    a, b = (1964, "image", 336), (1964, "image", 1056)
    assert rng.seed_of(*a) % 2**32 == rng.seed_of(*b) % 2**32
    assert not torch.equal(torch.rand(5, generator=rng.generator(*a)), torch.rand(5, generator=rng.generator(*b)))
    drawn = []
    for key in (a, b):
        rng.seed_everything(*key)
        drawn.append(torch.rand(5))
    assert not torch.equal(*drawn)


def test_no_two_streams_have_the_same_first_128_bits() -> None:
    count = 10_000
    drawn = torch.stack([torch.randint(2**32, (4,), generator=rng.generator(5, "noise", i)) for i in range(count)])
    assert len({tuple(words) for words in drawn.tolist()}) == count
    bits = (drawn[..., None] >> torch.arange(32)) & 1
    assert (bits.double().mean(dim=0) - 0.5).abs().max() < 0.025  # 5 standard deviations


def test_state_is_that_of_a_mersenne_twister() -> None:
    """The words are where torch reads them: the stream is that of numpy's generator with these words."""
    state = rng.generator("x").get_state()
    twister = np.random.RandomState()
    twister.set_state(("MT19937", state[rng.WORDS].numpy().view(np.uint64).astype(np.uint32), 624))
    words = twister.randint(0, 2**32, 20, dtype=np.uint32)
    drawn = torch.randint(2**32, (10,), generator=rng.generator("x"))  # each from two words, of which the second stays
    assert drawn.tolist() == words[1::2].tolist()
