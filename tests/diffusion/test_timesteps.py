"""Compare the visited timesteps with counts by hand and with the procedure of Nichol and Dhariwal (2021)."""

import itertools
import math

import numpy as np
import pytest

from ddpm_cli.config import Linear
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import even, even_in_logsnr, in_sections, stride
from tests.conftest import a_sampler
from tests.diffusion.toys import COSINE, LINEAR, pairs_of


def test_even_spacing_includes_both_ends() -> None:
    assert even(4, 4) == [0, 1, 2, 3]
    assert even(10, 4) == [0, 3, 6, 9]
    assert even(10, 1) == [9]
    assert even(1, 1) == [0]
    fifty = even(1000, 50)
    assert len(set(fifty)) == 50
    assert (fifty[0], fifty[-1]) == (0, 999)


def test_pairs_are_explicit_and_end_at_the_data() -> None:
    assert pairs_of(a_sampler(steps=4), LINEAR)[-1] == (0, -1)
    pairs = pairs_of(a_sampler(steps=50), LINEAR)
    assert pairs[0][0] == 999
    assert [t_prev for _, t_prev in pairs[:-1]] == [t for t, _ in pairs[1:]]
    assert len(pairs_of(a_sampler(), LINEAR)) == 1000


def test_pairs_from_a_start_timestep() -> None:
    sampler = a_sampler(sections=[4])
    process = Process(
        path_of(Linear(timesteps=10, beta_start=0.1, beta_end=0.2, rescale=False, zero_terminal_snr=False))
    )
    assert pairs_of(sampler, process) == [(9, 6), (6, 3), (3, 0), (0, -1)]
    assert pairs_of(sampler, process, start=7) == [(7, 6), (6, 3), (3, 0), (0, -1)]
    assert pairs_of(sampler, process, start=6) == [(6, 3), (3, 0), (0, -1)]
    assert pairs_of(sampler, process, start=0) == [(0, -1)]


def test_sections_match_the_example_of_the_paper() -> None:
    """Split 300 timesteps into sections of 10, 15 and 20 steps: strides of 11, 99 / 14 and 99 / 19."""
    visited = in_sections(300, [10, 15, 20])
    assert visited[:10] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert visited[10:25] == [100 + round(i * 99 / 14) for i in range(15)]
    assert visited[25:] == [200 + round(i * 99 / 19) for i in range(20)]


@pytest.mark.parametrize(("timesteps", "counts"), [(4000, [10, 15, 20]), (1000, [50]), (10, [3, 1, 3]), (7, [1, 1])])
def test_sections_match_the_procedure_of_the_paper(timesteps: int, counts: list[int]) -> None:
    size, extra = divmod(timesteps, len(counts))
    expected, start = [], 0
    for i, count in enumerate(counts):
        length = size + (1 if i < extra else 0)
        step = (length - 1) / (count - 1) if count > 1 else 1
        expected += [start + round(k * step) for k in range(count)]
        start += length
    assert in_sections(timesteps, counts) == expected


def test_stride_is_the_smallest_integer_with_the_number_of_steps() -> None:
    assert stride(1000, 50) == list(range(0, 1000, 20))
    for timesteps, steps in [(1000, 50), (1000, 8), (4000, 100), (10, 10), (10, 1), (300, 43)]:
        search = next(s for s in range(1, timesteps + 1) if len(range(0, timesteps, s)) == steps)
        assert stride(timesteps, steps) == list(range(0, timesteps, search))


def levels(process: Process) -> list[float]:
    return [process.logsnr(t) for t in range(process.timesteps)]


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [2, 10, 20, 50, 500, 1000])
def test_even_in_logsnr(process: Process, steps: int) -> None:
    visited = even_in_logsnr(levels(process), steps)
    assert len(visited) == steps
    assert (visited[0], visited[-1]) == (0, 999)
    assert all(t < after for t, after in itertools.pairwise(visited))


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_even_in_logsnr_down_to_noise(process: Process) -> None:
    """Log-SNRs are as evenly spaced as integers allow, down to -10.2; T - 1 is the only one below that."""
    logsnr = np.array([math.log(ac / (1 - ac)) for ac in process.alphas_cumprod])
    visited = even_in_logsnr(levels(process), 20)
    above = [t for t in visited if logsnr[t] >= -10.2]
    assert [t for t in visited if t not in above] == ([999] if process is COSINE else [])
    wanted = np.linspace(logsnr[0], logsnr[above[-1]], len(above))
    apart = np.abs(np.gradient(logsnr))[above]
    assert (np.abs(logsnr[above] - wanted) <= apart).all()


def test_logsnr_spacing_with_zero_terminal_snr() -> None:
    logsnr = [*levels(LINEAR)[:-1], -math.inf]
    visited = even_in_logsnr(logsnr, 20)
    assert len(set(visited)) == 20
    assert visited[-2:] == [998, 999]
    assert visited[:-1] == even_in_logsnr(logsnr[:-1], 19)
