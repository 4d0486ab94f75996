"""What a network predicts, and how its output becomes an estimate of x0 or of eps.

At a given t every prediction is a linear combination of x0 and eps. In this module a and b are the amplitudes of x0
and of eps in x_t, which broadcast with it.
"""

from typing import Protocol

import torch
from torch import Tensor


class Parameterization(Protocol):
    """The relation of a network's input and output to x_t, x0 and eps, all of them (B, ...) float32."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return what the network is trained to output."""
        ...

    def x0(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the x0 that corresponds to an output, the inverse of `target`. It is not clipped."""
        ...

    def eps(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the eps that corresponds to an output."""
        ...

    def per_squared_error_of_x0(self, snr: Tensor) -> Tensor:
        """Return the squared error of the output that corresponds to a squared error of x0 of 1."""
        ...

    def network_input(self, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return what the network is shown of x_t."""
        return x_t

    def network_time(self, t: Tensor, snr: Tensor) -> Tensor:
        """Return the number (B,) by which the network is told t (B,), whose signal-to-noise ratio is `snr` (B,)."""
        return t


class Eps(Parameterization):
    """The noise (Ho et al. 2020, section 3.2)."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return eps

    def x0(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (x_t - b * output) / a

    def eps(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return output

    def per_squared_error_of_x0(self, snr: Tensor) -> Tensor:
        return snr


class X0(Parameterization):
    """The data."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x0

    def x0(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return output

    def eps(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (x_t - a * output) / b

    def per_squared_error_of_x0(self, snr: Tensor) -> Tensor:
        return torch.ones_like(snr)


class V(Parameterization):
    """v = a eps - b x0, for variance-preserving processes (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return a * eps - b * x0

    def x0(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return a * x_t - b * output

    def eps(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return b * x_t + a * output

    def per_squared_error_of_x0(self, snr: Tensor) -> Tensor:
        return snr + 1


class Flow(Parameterization):
    """The velocity eps - x0 of a flow, where a + b = 1 (Lipman et al. 2022, arXiv:2210.02747; Liu et al. 2022)."""

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return eps - x0

    def x0(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x_t - b * output

    def eps(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x_t + a * output

    def per_squared_error_of_x0(self, snr: Tensor) -> Tensor:
        return (1 + snr.sqrt()) ** 2


class Edm(Parameterization):
    """The output F of a preconditioned network (Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1).

    With sigma = b / a, the estimate of x0 is D = c_skip x_t / a + c_out F(c_in x_t / a, c_noise). Here the coefficients
    are those of x_t, with d the standard deviation of x_t for data with the standard deviation `sigma_data`.
    """

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def _d(self, a: Tensor, b: Tensor) -> Tensor:
        return ((self.sigma_data * a) ** 2 + b**2).sqrt()

    def target(self, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (b / self.sigma_data * x0 - self.sigma_data * a * eps) / self._d(a, b)

    def x0(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        d = self._d(a, b)
        return self.sigma_data**2 * a / d**2 * x_t + self.sigma_data * b / d * output

    def eps(self, output: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        d = self._d(a, b)
        return b / d**2 * x_t - self.sigma_data * a / d * output

    def per_squared_error_of_x0(self, snr: Tensor) -> Tensor:
        return snr + self.sigma_data**-2

    def network_input(self, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return c_in x_t / a, which has unit variance."""
        return x_t / self._d(a, b)

    def network_time(self, t: Tensor, snr: Tensor) -> Tensor:
        """Return c_noise = log(sigma) / 4."""
        return -snr.log() / 8


def parameterization(prediction: str, sigma_data: float) -> Parameterization:
    """Return the parameterization for `prediction` eps, x0, v, flow or edm."""
    match prediction:
        case "eps":
            return Eps()
        case "x0":
            return X0()
        case "v":
            return V()
        case "flow":
            return Flow()
        case "edm":
            return Edm(sigma_data)
    raise ValueError(f"prediction={prediction}")
