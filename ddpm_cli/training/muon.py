"""Muon: matrices move along their momentum with all its directions made equally long."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ddpm_cli.training.parallel import parted, whole

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the polynomial a s + b s**3 + c s**5 that brings singular values s in (0, 1] near 1, applied `TIMES`."""
TIMES = 5


class Muon(torch.optim.AdamW):
    """The weights of convolutions and linear layers move by Muon, all else by AdamW, at the same learning rate.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon, with Nesterov's momentum; a filter is a row. The update is
    0.2 sqrt(max(rows, columns)) times the orthogonal matrix, which makes it as large as AdamW's is (Liu et al. 2025,
    arXiv:2502.16982, eq. 4). It is computed in `dtype`, but not in fp16; of parted weights, by every process for all.
    torch.optim.Muon takes matrices alone, no filters, and knows of no `found_inf`.
    """

    def __init__(
        self, network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(network.parameters(), lr, betas, weight_decay=weight_decay, fused=True)
        self.matrices = matrices_of(network)
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # in fp16 small momenta would be 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update, of nothing where `found_inf` says so, as of the fused optimizers."""
        group = self.param_groups[0]
        for alike in _by_shape(self.matrices):
            directions = orthogonal(self._momenta(alike).to(self.dtype)).to(alike[0].dtype)
            length = 0.2 * math.sqrt(max(directions.shape[1:]))
            for weight, direction in zip(alike, directions, strict=True):
                decayed = weight * (1 - group["lr"] * group["weight_decay"])
                new = decayed.sub_(parted(direction.reshape(weight.shape), weight), alpha=group["lr"] * length)
                self._unless_skipped(weight, new)
                weight.grad = None  # so that AdamW leaves it alone
        super().step()

    def _momenta(self, weights: list[Tensor]) -> Tensor:
        """Where weights of a shape are to go, as matrices: (weights, rows, columns)."""
        moved = []
        for weight in weights:
            assert weight.grad is not None
            state = self.state[weight]
            if not state:  # AdamW reads `step` in all that is loaded
                state |= {"step": torch.zeros((), device=weight.device), "momentum": torch.zeros_like(weight)}
            momentum = state["momentum"].lerp(weight.grad, 1 - MOMENTUM)
            moved.append(whole(weight.grad.lerp(momentum, MOMENTUM)).flatten(1))
            self._unless_skipped(state["momentum"], momentum)
            state["step"] += 1
        return torch.stack(moved)

    def _unless_skipped(self, old: Tensor, new: Tensor) -> None:
        skip = getattr(self, "found_inf", None)
        old.copy_(new if skip is None else torch.where(skip > 0, old, new))


def matrices_of(network: nn.Module) -> list[Tensor]:
    """The weights of its convolutions and linear layers, which Muon is for."""
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C) with singular values all about 1 (0.7 to 1.2) and the same singular vectors; 0 stays 0."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(TIMES):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if wide is not matrices else x


def _by_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    alike: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        alike.setdefault(weight.shape, []).append(weight)
    return list(alike.values())
