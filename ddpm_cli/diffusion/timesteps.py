"""The timesteps that a sampler visits."""

import numpy as np

from ddpm_cli.config.sampler import section_sizes, stride
from ddpm_cli.diffusion.process import Process

LEAST_LOGSNR = -10.2
"""Twice the -5.1 to which Lu et al.'s code clips lambda. There, 0.6% of the amplitude of x_t is signal."""

Pairs = list[tuple[int, int]]
"""(t, t_prev) from the noisiest step to the last one, whose t_prev = -1 is the data."""


def timestep_pairs(
    process: Process, steps: int | None, sections: list[int] | None, spacing: str, start: int | None = None
) -> Pairs:
    """Return the steps of a sampler as pairs (t, t_prev).

    Args:
        steps: number of timesteps; None for all T.
        sections: numbers of timesteps in equal parts of 0..T-1, instead of `steps`.
        spacing: time, stride or logsnr.
        start: the first timestep, by default the largest one visited.
    """
    visited = _visited(process, steps, sections, spacing)[::-1]
    if start is not None:
        visited = [start, *(t for t in visited if t < start)]
    return list(zip(visited, [*visited[1:], -1], strict=True))


def _visited(process: Process, steps: int | None, sections: list[int] | None, spacing: str) -> list[int]:
    T = process.timesteps
    if sections is not None:
        return in_sections(T, sections)
    steps = T if steps is None else steps
    match spacing:
        case "time":
            return even(T, steps)
        case "stride":
            return stride(T, steps)
        case "logsnr":
            return even_in_logsnr([process.logsnr(t) for t in range(T)], steps)
    raise ValueError(f"spacing={spacing}")


def even(timesteps: int, steps: int) -> list[int]:
    """Return `steps` evenly spaced timesteps of 0..T-1, including both ends; a single one is T-1."""
    return np.linspace(timesteps - 1, 0, steps).round().astype(int)[::-1].tolist()


def in_sections(timesteps: int, counts: list[int]) -> list[int]:
    """Return counts[i] evenly spaced timesteps from the i-th of len(counts) equal parts of 0..T-1.

    Parts differ by one if T does not divide; the first ones are longer (Nichol & Dhariwal 2021, section 4). A single
    timestep is the first one of its part.
    """
    visited, first = [], 0
    for size, count in zip(section_sizes(timesteps, len(counts)), counts, strict=True):
        visited += (first + np.linspace(0, size - 1, count).round().astype(int)).tolist()
        first += size
    return visited


def even_in_logsnr(levels: list[float], steps: int) -> list[int]:
    """Return `steps` timesteps of 0..T-1, including both ends, as even in log-SNR (T,) as integers allow.

    That is uniform in lambda (Lu et al. 2022, arXiv:2206.00927, section 3.3). If they lie closer together than
    timesteps do, neighbours are used. If the log-SNR falls below `LEAST_LOGSNR` at the end, as for the cosine
    schedule, the first step is at T-1 and the others are above that limit, because there is nothing to solve between.
    """
    T = len(levels)
    logsnr = np.array(levels)
    useful = int((logsnr >= LEAST_LOGSNR).sum())
    head = [] if useful == T else [T - 1]
    if steps < 2 + len(head) or useful < 2:
        return even(T, steps)
    count = min(steps - len(head), useful)
    wanted = np.linspace(logsnr[useful - 1], logsnr[0], count)
    nearest = np.interp(wanted, logsnr[:useful][::-1], np.arange(useful)[::-1]).round()[::-1]
    ranks = np.arange(count)
    apart = np.maximum.accumulate(nearest - ranks) + ranks
    within = np.minimum(apart, useful - count + ranks).astype(int).tolist()
    rest = range(T - 1 - (steps - count - len(head)), T - 1)  # where there are more steps than useful timesteps
    return [*within, *rest, *head]
