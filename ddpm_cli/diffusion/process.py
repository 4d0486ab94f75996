"""The Gaussian diffusion process: q(x_t | x_0), and what a network's output says of x_0.

Notation of Ho et al. 2020 (arXiv:2006.11239), but t runs from 0 to T-1. All arithmetic here is float32 or
better, whatever the network computes in.
"""

import torch
from torch import Tensor


class Process:
    """The tables of a schedule.

    Attributes:
        alphas_cumprod: T Python floats, for a sampler's coefficients in double precision.
        sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod: (T,) float32 on `device`, for batches of t.
    """

    def __init__(self, betas: Tensor, device: torch.device | str = "cpu") -> None:
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.alphas_cumprod: list[float] = alphas_cumprod.tolist()
        # Cast before the move: MPS has no float64.
        self.sqrt_alphas_cumprod = alphas_cumprod.sqrt().float().to(device)
        self.sqrt_one_minus_alphas_cumprod = (1 - alphas_cumprod).sqrt().float().to(device)

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) for the noise `eps` (eq. 4).

        Args: x0, eps: (B, ...) float32; t: (B,) integers in 0..T-1. Returns: (B, ...) float32.
        """
        a, b = self._signal_and_noise(t, x0)
        return a * x0 + b * eps

    def v(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """v = sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x0 (Salimans & Ho 2022, section 4)."""
        a, b = self._signal_and_noise(t, x0)
        return a * eps - b * x0

    def target(self, prediction: str, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What a network of `prediction` eps, x0 or v should say of x_t."""
        match prediction:
            case "eps":
                return eps
            case "x0":
                return x0
            case "v":
                return self.v(x0, t, eps)
        raise ValueError(f"prediction={prediction}")

    def x0_from(self, prediction: str, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The x0 that a network's `output` at x_t stands for: the inverse of `target`.

        Args: output, x_t: (B, ...) float32; t: (B,) integers. Returns: (B, ...) float32, not clipped.
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

    def _signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), shaped to multiply `like`."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.sqrt_alphas_cumprod[t].view(shape), self.sqrt_one_minus_alphas_cumprod[t].view(shape)
