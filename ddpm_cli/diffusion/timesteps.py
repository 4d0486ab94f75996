"""Which timesteps a sampler visits."""

import numpy as np

from ddpm_cli.config import Sampler
from ddpm_cli.diffusion.process import Process

LEAST_LOGSNR = -10.2
"""Twice the -5.1 to which Lu et al.'s code cuts lambda: x_t is noise but for 0.6% of its amplitude."""

Pairs = list[tuple[int, int]]
"""(t, t_prev) from the noisiest step to the last, whose t_prev = -1 is the image."""


def pairs_of(sampler: Sampler, process: Process, start: int | None = None) -> Pairs:
    """The steps of `sampler` as pairs (t, t_prev); `start`: from this timestep, rather than T-1."""
    visited = _visited(sampler, process)[::-1]
    if start is not None:
        visited = [start, *(t for t in visited if t < start)]
    return list(zip(visited, [*visited[1:], -1], strict=True))


def _visited(sampler: Sampler, process: Process) -> list[int]:
    T = process.timesteps
    if sampler.sections is not None:
        return sections(T, sampler.sections)
    steps = T if sampler.steps is None else sampler.steps
    match sampler.spacing:
        case "time":
            return even(T, steps)
        case "stride":
            return stride(T, steps)
        case "logsnr":
            return even_in_logsnr(process.alphas_cumprod, steps)
    raise ValueError(f"spacing={sampler.spacing}")


def even(timesteps: int, steps: int) -> list[int]:
    """`steps` of 0..T-1, both ends among them; one alone is T-1."""
    return np.linspace(timesteps - 1, 0, steps).round().astype(int)[::-1].tolist()


def stride(timesteps: int, steps: int) -> list[int]:
    """0, s, 2s, ... with the whole s that gives `steps` of them: DDIM's (Song et al. 2020, appendix D.2)."""
    return list(range(0, timesteps, -(-timesteps // steps)))


def sections(timesteps: int, counts: list[int]) -> list[int]:
    """counts[i] timesteps, evenly spaced, of the i-th of len(counts) equal parts of 0..T-1.

    Parts differ by one where T does not divide; the first ones are longer (Nichol & Dhariwal 2021, section 4).
    A lone timestep is its part's first.
    """
    bounds = np.array_split(np.arange(timesteps), len(counts))
    picked = [
        part[np.linspace(0, len(part) - 1, count).round().astype(int)]
        for part, count in zip(bounds, counts, strict=True)
    ]
    return np.concatenate(picked).tolist()


def even_in_logsnr(alphas_cumprod: list[float], steps: int) -> list[int]:
    """`steps` of 0..T-1, both ends among them, as even in log-SNR as whole timesteps allow.

    That is uniform in lambda (Lu et al. 2022, arXiv:2206.00927, section 3.3). Where the wanted ones lie closer
    than timesteps do, neighbours are taken. Where the log-SNR falls below `LEAST_LOGSNR` at the end, as the cosine
    schedule's does, T-1 comes first and the others share what lies above: there is nothing to solve in between.
    """
    T = len(alphas_cumprod)
    signal = np.array(alphas_cumprod)
    with np.errstate(divide="ignore"):
        logsnr = np.log(signal / (1 - signal))
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
