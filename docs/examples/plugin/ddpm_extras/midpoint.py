"""The midpoint method on the probability flow ODE."""

from collections.abc import Iterator

from torch import Tensor

from ddpm_cli.api import Denoise, Noise, Pairs, Process, Step


def midpoint(
    denoise: Denoise, x: Tensor, process: Process, pairs: Pairs, noise: Noise, last_step: str
) -> Iterator[Step]:
    """Yield a step for each of `pairs`: second order, two network calls a step.

    In units of the signal, y = x / signal and level = sigma / signal, the flow is dy/dlevel = (x - signal x0) / sigma.
    A step follows the slope at the timestep in the middle, which is reached by a half step of Euler's method. The last
    step to the data, and steps to the next timestep, have no middle and are Euler's.
    """
    for t, t_prev in pairs:
        x0 = denoise(x, t, None).x0
        between, t_between = x, t
        if t_prev >= 0 and t - t_prev > 1:
            t_between = (t + t_prev) // 2
            between = move(process, x, t, t_between, slope(process, x, x0, t))
            x0 = denoise(between, t_between, x0).x0
        x = move(process, x, t, t_prev, slope(process, between, x0, t_between))
        if t_prev < 0 and last_step == "x0":
            x = x0
        yield Step(t, x, x0)


def slope(process: Process, x: Tensor, x0: Tensor, t: int) -> Tensor:
    signal, sigma = process.amplitudes(t)
    return (x - signal * x0) / sigma


def move(process: Process, x: Tensor, t: int, t_prev: int, slope: Tensor) -> Tensor:
    """Return x at t_prev for a constant slope of y."""
    (signal, sigma), (signal_prev, sigma_prev) = process.amplitudes(t), process.amplitudes(t_prev)
    return signal_prev * (x / signal + (sigma_prev / signal_prev - sigma / signal) * slope)
