"""A network seen as a denoiser: x_t in, an estimate of x0 out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.process import Process

Network = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> output: x (B, C, H, W), or (B, 2C, H, W) with self-conditioning; t (B,); output (B, C, H, W)."""


@dataclass(frozen=True)
class Denoiser:
    """What training and sampling both ask of a network.

    prediction: eps, x0 or v. self_condition: the network also sees its last estimate of x0, on the channels
    before x_t, zeros where there is none (Chen et al. 2022, arXiv:2208.04202, section 3.2).
    """

    network: Network
    process: Process
    prediction: str
    self_condition: bool = False

    def output(self, x_t: Tensor, t: Tensor, last_x0: Tensor | None = None) -> Tensor:
        """The network's output in float32: (B, C, H, W)."""
        if self.self_condition:
            x_t = torch.cat([torch.zeros_like(x_t) if last_x0 is None else last_x0, x_t], dim=1)
        return self.network(x_t, t).float()

    def x0(self, x_t: Tensor, t: Tensor, last_x0: Tensor | None = None, clip: bool = True) -> Tensor:
        """The estimate of x0, clipped to [-1, 1] where asked: (B, C, H, W) float32."""
        x0 = self.process.x0_from(self.prediction, self.output(x_t, t, last_x0), x_t, t)
        return x0.clamp(-1, 1) if clip else x0
