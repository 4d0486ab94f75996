"""The Gaussian diffusion process: q(x_t | x_0), q(x_{t-1} | x_t, x_0), and estimates of x_0 from a network's output.

The notation is that of Ho et al. 2020 (arXiv:2006.11239), but t runs from 0 to T-1. All arithmetic here is in float32
or float64, independent of the dtype of the network.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Noise = Callable[[], Tensor]
"""Returns new standard normal noise of the shape of x at each call."""


class Process:
    """The tables of a schedule.

    Attributes:
        betas, alphas_cumprod: T Python floats each, for the coefficients of samplers in double precision.
        sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod, snr: (T,) float32 on `device`, for batches of t.
        log_betas, log_posterior_variance: (T,) float32, the log-variances of q(x_t | x_{t-1}) and
            q(x_{t-1} | x_t, x_0). The latter variance is 0 at t = 0, where the value of t = 1 is used, as in Ho et
            al.'s code.
    """

    def __init__(self, betas: Tensor, device: torch.device | str = "cpu") -> None:
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([torch.ones_like(betas[:1]), alphas_cumprod[:-1]])
        posterior_variance = betas * (1 - before) / (1 - alphas_cumprod)
        posterior_variance[0] = posterior_variance[1] if len(betas) > 1 else betas[0]
        self.betas: list[float] = betas.tolist()
        self.alphas_cumprod: list[float] = alphas_cumprod.tolist()

        def table(values: Tensor) -> Tensor:
            return values.float().to(device)  # cast before the move: MPS has no float64

        self.sqrt_alphas_cumprod = table(alphas_cumprod.sqrt())
        self.sqrt_one_minus_alphas_cumprod = table((1 - alphas_cumprod).sqrt())
        self.snr = table(alphas_cumprod / (1 - alphas_cumprod))
        self.log_betas = table(betas.log())
        self.log_posterior_variance = table(posterior_variance.log())
        self._posterior_x0 = table(before.sqrt() * betas / (1 - alphas_cumprod))
        self._posterior_x_t = table((1 - betas).sqrt() * (1 - before) / (1 - alphas_cumprod))

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t ~ q(x_t | x_0) for the noise `eps` (eq. 4).

        Args:
            x0, eps: (B, ...) float32.
            t: (B,) integers in 0..T-1.

        Returns:
            (B, ...) float32.
        """
        a, b = self._signal_and_noise(t, x0)
        return a * x0 + b * eps

    def chain(self, x0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Yield x_0, x_1, ..., drawn step by step from q(x_t | x_{t-1}) (eq. 2): T tensors of the shape of x0."""
        x = x0
        for beta in self.betas:
            x = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise()
            yield x

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0) (eq. 7), which is x0 at t = 0. Arguments as in `q_sample`."""
        return self.at(self._posterior_x0, t, x0) * x0 + self.at(self._posterior_x_t, t, x0) * x_t

    def v(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return v = sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x0 (Salimans & Ho 2022, section 4)."""
        a, b = self._signal_and_noise(t, x0)
        return a * eps - b * x0

    def target(self, prediction: str, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the target of a network with `prediction` eps, x0 or v."""
        match prediction:
            case "eps":
                return eps
            case "x0":
                return x0
            case "v":
                return self.v(x0, t, eps)
        raise ValueError(f"prediction={prediction}")

    def x0_from(self, prediction: str, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the x0 that corresponds to a network's `output` at x_t, the inverse of `target`.

        Args:
            output, x_t: (B, ...) float32.
            t: (B,) integers.

        Returns:
            (B, ...) float32, not clipped.
        """
        a, b = self._signal_and_noise(t, x_t)
        match prediction:
            case "eps":
                return (x_t - b * output) / a
            case "x0":
                return output
            case "v":
                return a * x_t - b * output
        raise ValueError(f"prediction={prediction}")

    def eps_from(self, prediction: str, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the eps that corresponds to a network's `output` at x_t. Arguments as in `x0_from`."""
        a, b = self._signal_and_noise(t, x_t)
        match prediction:
            case "eps":
                return output
            case "x0":
                return (x_t - a * output) / b
            case "v":
                return b * x_t + a * output
        raise ValueError(f"prediction={prediction}")

    def at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Return table[t] in the shape (B, 1, ...), which broadcasts with `like`."""
        return table[t].view((-1,) + (1,) * (like.ndim - 1))

    def _signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), which broadcast with `like`."""
        return self.at(self.sqrt_alphas_cumprod, t, like), self.at(self.sqrt_one_minus_alphas_cumprod, t, like)
