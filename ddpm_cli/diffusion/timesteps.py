"""The timesteps that a sampler visits."""

import math

import numpy as np
from numpy.typing import NDArray

from ddpm_cli.config.consistency import Consistency
from ddpm_cli.config.sampler import Sampler, section_sizes, stride
from ddpm_cli.diffusion.process import Process
from ddpm_cli.errors import UserError

LEAST_LOGSNR = -10.2
"""Twice the -5.1 to which Lu et al.'s code clips lambda. There, 0.6% of the amplitude of x_t is signal."""
LARGEST_SIGNAL = 0.05
"""Largest share of signal in the amplitude of the x_t that a sampler may start from, where T-1 has less."""
TOLERANCE = 1.05
"""Largest ratio of that share to the one at T-1, where T-1 has more."""

Pairs = list[tuple[int, int]]
"""(t, t_prev) from the noisiest step to the last one, whose t_prev = -1 is the data."""


def timestep_pairs(process: Process, sampler: Sampler, start: int | None = None) -> Pairs:
    """Return the steps of a sampler as pairs (t, t_prev), from t = `start`, by default the largest one visited."""
    visited = _visited(process, sampler)[::-1]
    if start is not None:
        visited = [start, *(t for t in visited if t < start)]
    return list(zip(visited, [*visited[1:], -1], strict=True))


def check_start(process: Process, sampler: Sampler) -> None:
    """Raise `UserError` unless x_t at the first timestep that is visited is as good as noise.

    Its signal is at most 5% of its amplitude, hypot(signal, sigma), or as much as at T-1. If a process ends without
    signal, samplers start there: they exist because Lin et al. 2023 (arXiv:2305.08891, section 3.3) found that a start
    with a little signal limits the brightness of images.
    """
    start, last = _visited(process, sampler)[-1], process.timesteps - 1
    share, of_last = _signal_share(process, start), _signal_share(process, last)
    if start == last or (of_last > 0 and share <= max(LARGEST_SIGNAL, TOLERANCE * of_last)):
        return
    if sampler.sections is not None:
        choice, advice = f"sections={sampler.sections}", "2 or more in the last section, or sampler.sections=null"
    else:  # quadratic steps start at 0.8 T for any number of steps
        choice, advice = f"spacing={sampler.spacing}", "sampler.spacing=trailing or time"
        advice += "" if sampler.spacing == "quadratic" else ", or more steps"
    why = "only the last one is pure noise" if of_last == 0 else f"{share:.1%} of the amplitude of x_t is signal"
    raise UserError(
        f"sampler.{choice}: these steps start at t={start} of T={process.timesteps}, but {why}; use {advice}"
    )


def _signal_share(process: Process, t: int) -> float:
    signal, sigma = process.amplitudes(t)
    return signal / math.hypot(signal, sigma)


def _visited(process: Process, sampler: Sampler) -> list[int]:
    T = process.timesteps
    if sampler.sections is not None:
        return in_sections(T, sampler.sections)
    steps = T if sampler.steps is None else sampler.steps
    if isinstance(sampler, Consistency) and sampler.mid_sigma is not None:
        return down_to_level([process.logsnr(t) for t in range(T)], steps, sampler.mid_sigma)
    match sampler.spacing:
        case "time":
            return even(T, steps)
        case "trailing":
            return trailing(T, steps)
        case "stride":
            return stride(T, steps)
        case "quadratic":
            return quadratic(T, steps)
        case "logsnr":
            return even_in_logsnr([process.logsnr(t) for t in range(T)], steps)
        case "karras":
            return karras([process.logsnr(t) for t in range(T)], steps, sampler.rho)
    raise ValueError(f"spacing={sampler.spacing}")


def even(timesteps: int, steps: int) -> list[int]:
    """Return `steps` evenly spaced timesteps of 0..T-1, including both ends; a single one is T-1."""
    return np.linspace(timesteps - 1, 0, steps).round().astype(int)[::-1].tolist()


def down_to_level(logsnr: list[float], steps: int, sigma: float) -> list[int]:
    """Return `steps` timesteps of 0..T-1, evenly spaced from the one nearest to the noise level `sigma` to T-1.

    A single one is T-1. If they are more than there are in between, they begin earlier.
    """
    T = len(logsnr)
    nearest = min(range(T), key=lambda t: abs(logsnr[t] + 2 * math.log(sigma)))
    return np.linspace(T - 1, min(nearest, T - steps), steps).round().astype(int)[::-1].tolist()


def trailing(timesteps: int, steps: int) -> list[int]:
    """Return `steps` timesteps that end at T-1 and begin about T / steps - 1 after 0 (Lin et al. 2023, table 2)."""
    return (np.arange(timesteps, 0, -timesteps / steps)[:steps].round().astype(int) - 1)[::-1].tolist()


def quadratic(timesteps: int, steps: int) -> list[int]:
    """Return the timesteps below 0.8 T whose roots are evenly spaced, as DDIM for CIFAR-10 (Song et al. 2020, D.2).

    They lie closer together than timesteps do near 0. Equal ones are visited once, so there may be fewer than `steps`.
    """
    roots = np.linspace(0, math.sqrt(0.8 * timesteps), steps)
    return sorted({min(int(root**2), timesteps - 1) for root in roots.tolist()})


def in_sections(timesteps: int, counts: list[int]) -> list[int]:
    """Return counts[i] evenly spaced timesteps from the i-th of len(counts) equal parts of 0..T-1.

    Parts differ by one if T does not divide; the first ones are longer (Nichol & Dhariwal 2021, section 4). A single
    timestep is the first one of its part. Positions are sums of strides, rounded to even, as in OpenAI's code.
    """
    visited, first = [], 0
    for size, count in zip(section_sizes(timesteps, len(counts)), counts, strict=True):
        position, step = 0.0, (size - 1) / max(count - 1, 1)
        for _ in range(count):
            visited.append(first + round(position))
            position += step
        first += size
    return visited


def even_in_logsnr(levels: list[float], steps: int) -> list[int]:
    """Return `steps` timesteps of 0..T-1, including both ends, as even in log-SNR (T,) as integers allow.

    That is uniform in lambda (Lu et al. 2022, arXiv:2206.00927, section 3.3); see `_even_in` for the ends.
    """
    logsnr = np.array(levels)
    return _even_in(-logsnr, logsnr, steps)


def karras(levels: list[float], steps: int, rho: float) -> list[int]:
    """Return `steps` timesteps, including both ends, as even in (sigma / signal)**(1/rho) as integers allow.

    Karras et al. 2022 (arXiv:2206.00364), eq. 5, who take rho = 7; see `_even_in` for the ends.

    Args:
        levels: the log-SNRs, (T,).
    """
    logsnr = np.array(levels)
    return _even_in(np.exp(-logsnr / (2 * rho)), logsnr, steps)


def _even_in(rising: NDArray[np.float64], logsnr: NDArray[np.float64], steps: int) -> list[int]:
    """Return `steps` timesteps of 0..T-1, including both ends, between which `rising` (T,) rises evenly.

    If they lie closer together than timesteps do, neighbours are used. If the log-SNR falls below `LEAST_LOGSNR` at the
    end, as for the cosine schedule, the first step is at T-1 and the others are above that limit, because there is
    nothing to solve between.
    """
    T = len(logsnr)
    useful = int((logsnr >= LEAST_LOGSNR).sum())
    head = [] if useful == T else [T - 1]
    if steps < 2 + len(head) or useful < 2:
        return even(T, steps)
    count = min(steps - len(head), useful)
    wanted = np.linspace(rising[0], rising[useful - 1], count)
    nearest = np.interp(wanted, rising[:useful], np.arange(useful)).round()
    ranks = np.arange(count)
    apart = np.maximum.accumulate(nearest - ranks) + ranks
    within = np.minimum(apart, useful - count + ranks).astype(int).tolist()
    rest = range(T - 1 - (steps - count - len(head)), T - 1)  # where there are more steps than useful timesteps
    return [*within, *rest, *head]
