"""Compare the visited timesteps with counts by hand and with the procedure of Nichol and Dhariwal (2021)."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler

from ddpm_cli.config import EdmPath, FlowPath, Linear
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.diffusion.timesteps import (
    check_start,
    even,
    even_in_logsnr,
    in_sections,
    karras,
    quadratic,
    stride,
    timestep_pairs,
    trailing,
)
from ddpm_cli.errors import UserError
from tests.conftest import a_sampler
from tests.diffusion.toys import COSINE, LINEAR

EDM = Process(path_of(EdmPath(timesteps=1000, sigma_min=0.002, sigma_max=80.0, rho=7.0)))


def test_even_spacing_includes_both_ends() -> None:
    assert even(4, 4) == [0, 1, 2, 3]
    assert even(10, 4) == [0, 3, 6, 9]
    assert even(10, 1) == [9]
    assert even(1, 1) == [0]
    fifty = even(1000, 50)
    assert len(set(fifty)) == 50
    assert (fifty[0], fifty[-1]) == (0, 999)


def test_pairs_are_explicit_and_end_at_the_data() -> None:
    assert timestep_pairs(LINEAR, a_sampler(steps=4))[-1] == (0, -1)
    pairs = timestep_pairs(LINEAR, a_sampler(steps=50))
    assert pairs[0][0] == 999
    assert [t_prev for _, t_prev in pairs[:-1]] == [t for t, _ in pairs[1:]]
    assert len(timestep_pairs(LINEAR, a_sampler())) == 1000


def test_pairs_from_a_start_timestep() -> None:
    sampler = a_sampler(sections=[4])
    process = Process(
        path_of(Linear(timesteps=10, beta_start=0.1, beta_end=0.2, rescale=False, zero_terminal_snr=False))
    )
    assert timestep_pairs(process, sampler) == [(9, 6), (6, 3), (3, 0), (0, -1)]
    assert timestep_pairs(process, sampler, start=7) == [(7, 6), (6, 3), (3, 0), (0, -1)]
    assert timestep_pairs(process, sampler, start=6) == [(6, 3), (3, 0), (0, -1)]
    assert timestep_pairs(process, sampler, start=0) == [(0, -1)]


def openai_sections(timesteps: int, counts: list[int]) -> list[int]:
    """Return the timesteps of OpenAI's code, whose position in a section is a sum of strides, rounded to even."""
    visited, start = [], 0
    for i, count in enumerate(counts):
        length = timesteps // len(counts) + (i < timesteps % len(counts))
        position, step = 0.0, (length - 1) / (count - 1) if count > 1 else 1
        for _ in range(count):
            visited.append(start + round(position))
            position += step
        start += length
    return visited


def test_sections_match_the_example_of_the_paper() -> None:
    """Split 300 timesteps into sections of 10, 15 and 20 steps: strides of 11, 99 / 14 and 99 / 19."""
    visited = in_sections(300, [10, 15, 20])
    assert visited[:10] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert visited[10:25] == [100, 107, 114, 121, 128, 135, 142, 149, 157, 164, 171, 178, 185, 192, 199]
    assert visited[25:] == [200 + round(i * 99 / 19) for i in range(20)]


@pytest.mark.parametrize(
    ("timesteps", "counts"),
    [(300, [10, 15, 20]), (4000, [10, 15, 20]), (1000, [50]), (1000, [334]), (10, [3, 1, 3]), (7, [1, 1])],
)
def test_sections_match_the_code_of_the_paper(timesteps: int, counts: list[int]) -> None:
    assert in_sections(timesteps, counts) == openai_sections(timesteps, counts)


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


def test_trailing_counts_from_the_end() -> None:
    """Lin et al. 2023, table 2: 10 of 1000 timesteps are 100, 200, ..., 1000, here one less."""
    assert trailing(1000, 10) == list(range(99, 1000, 100))
    assert trailing(1000, 1) == [999]
    assert trailing(50, 50) == list(range(50))
    for timesteps, steps in [(1000, 30), (1000, 999), (300, 9), (11, 4)]:
        scheduler = DDIMScheduler(timesteps, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        assert trailing(timesteps, steps) == scheduler.timesteps.flip(0).tolist()
    for timesteps, steps in itertools.product([300, 1000], range(1, 300)):
        visited = trailing(timesteps, steps)  # of diffusers they are more in some cases, because of rounding
        assert len(set(visited)) == steps
        assert 0 <= visited[0] < visited[-1] + 1 == timesteps


def test_quadratic_steps_are_those_of_ddim() -> None:
    assert quadratic(1000, 10) == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    assert quadratic(1000, 20)[-1] == 800
    assert quadratic(1000, 50)[:4] == [0, 1, 2, 5]  # DDIM's code visits 0 twice, without effect
    assert quadratic(1, 1) == [0]


@pytest.mark.parametrize("process", [LINEAR, COSINE, EDM], ids=["linear", "cosine", "edm"])
@pytest.mark.parametrize("steps", [2, 10, 18, 50, 1000])
def test_karras(process: Process, steps: int) -> None:
    """sigma**(1/rho) is as even as integers allow, down to the noise; on the path of that spacing, so is the time."""
    visited = karras(levels(process), steps, 7.0)
    assert len(visited) == steps
    assert (visited[0], visited[-1]) == (0, 999)
    assert all(t < after for t, after in itertools.pairwise(visited))
    if process is EDM:
        assert visited == even(1000, steps)
    elif steps == 18:
        roots = np.array([math.exp(-process.logsnr(t) / 14) for t in range(1000)])
        above = [t for t in visited if process.logsnr(t) >= -10.2]
        wanted = np.linspace(roots[0], roots[above[-1]], len(above))
        assert (np.abs(roots[above] - wanted) <= np.gradient(roots)[above]).all()


def test_karras_with_rho_1_is_even_in_the_noise_level() -> None:
    assert karras([-2 * math.log(1 + t) for t in range(100)], 12, 1.0) == even(100, 12)


FLOW = Process(path_of(FlowPath(timesteps=1000, shift=1.0)))
SHORT = Process(path_of(Linear(timesteps=300, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=False)))


@pytest.mark.parametrize(
    ("process", "changes"),
    [
        (LINEAR, {"steps": 50, "spacing": "stride"}),
        (LINEAR, {"steps": 20, "spacing": "quadratic"}),  # published; 3.9% signal at t = 800
        (COSINE, {"steps": 50, "spacing": "stride"}),
        (COSINE, {"sections": [10, 15, 20]}),
        (EDM, {"steps": 50, "spacing": "stride"}),
        (SHORT, {"spacing": "stride"}),
        (SHORT, {"steps": 100, "spacing": "stride"}),  # ends at 22% signal, and starts at 22%
        *((FLOW, {"steps": 7, "spacing": spacing}) for spacing in ("time", "trailing", "logsnr", "karras")),
        (FLOW, {"spacing": "stride"}),
    ],
)
def test_starts_at_noise(process: Process, changes: dict[str, Any]) -> None:
    check_start(process, a_sampler(**changes))


@pytest.mark.parametrize(
    ("process", "changes", "message"),
    [
        (
            COSINE,
            {"steps": 20, "spacing": "stride"},
            "spacing=stride: these steps start at t=950 of T=1000, but 7.6% of the amp",
        ),
        (COSINE, {"steps": 20, "spacing": "quadratic"}, "spacing=quadratic: these steps start at t=800 of T=1000, but"),
        (EDM, {"steps": 4, "spacing": "stride"}, "spacing=stride: these steps start at t=750 of T=1000, but 5.7% of"),
        (LINEAR, {"sections": [5, 1]}, r"sections=\[5, 1\]: these steps start at t=500 of T=1000, but 27.9%"),
        (
            SHORT,
            {"steps": 10, "spacing": "stride"},
            "spacing=stride: these steps start at t=270 of T=300, but 29.0% of",
        ),
        (FLOW, {"steps": 100, "spacing": "stride"}, "only the last one is pure noise; use sampler.spacing=trailing"),
    ],
)
def test_starts_with_signal_are_refused(process: Process, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_start(process, a_sampler(**changes))
