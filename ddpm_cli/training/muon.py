"""The Muon optimizer: matrices are updated by their orthogonalised momentum."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ddpm_cli.distributed.sharding import local_part, shard_rows, unshard_rows

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of a s + b s**3 + c s**5, which, applied `TIMES` times, moves singular values s in (0, 1] towards 1."""
TIMES = 5


class Muon(torch.optim.AdamW):
    """Muon for the weights of convolutions and linear layers, AdamW for all other parameters, at one learning rate.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon, with Nesterov momentum; each filter of a convolution is a
    row. The update is 0.2 sqrt(max(rows, columns)) times the orthogonal matrix, which makes it as large as AdamW's
    (Liu et al. 2025, arXiv:2502.16982, eq. 4). torch.optim.Muon takes no filters and ignores `found_inf`.

    Matrices of one shape are updated together, in a number of kernels that does not depend on how many there are.
    With sharded parameters every process orthogonalises all matrices.

    Args:
        weight_decay: of the matrices; other parameters are not decayed.
        lr: a number, or a tensor if the step is to be captured as a CUDA graph (`capturable`).
        dtype: of the orthogonalisation; float32 replaces float16, in which small momenta would be 0.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float | Tensor,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype,
        capturable: bool = False,
    ) -> None:
        parameters = network.parameters()
        super().__init__(parameters, lr, betas, weight_decay=0.0, fused=True, capturable=capturable)
        self.matrices = matrices_of(network)
        self.matrix_decay = weight_decay
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self._skip: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters once, or none if `found_inf` is set, as for torch's fused optimizers."""
        group = self.param_groups[0]
        found_inf = getattr(self, "found_inf", None)
        self._skip = None if found_inf is None else local_part(found_inf) > 0
        for weights in _by_shape(self.matrices):
            direction = self._direction(weights)
            length = group["lr"] * (0.2 * math.sqrt(max(direction.shape[1:])))
            update = shard_rows(direction.to(weights[0].dtype) * length, weights[0])
            old = torch.stack([rows(weight) for weight in weights])
            new = old * (1 - group["lr"] * self.matrix_decay) - update
            self._store(weights, self._unless_skipped(old, new))
        torch._foreach_add_([self.state[weight]["step"] for weight in self.matrices], 1)
        for weight in self.matrices:
            weight.grad = None  # so that AdamW skips it
        super().step()

    def _direction(self, weights: list[Tensor]) -> Tensor:
        """Update the momenta of weights of one shape; return their orthogonal directions (weights, rows, columns)."""
        states = [self._state(weight) for weight in weights]
        gradient = torch.stack([rows(weight.grad) for weight in weights if weight.grad is not None])
        old = torch.stack([rows(state["momentum"]) for state in states])
        momentum = old.lerp(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)
        self._store([state["momentum"] for state in states], self._unless_skipped(old, momentum))
        return orthogonal(unshard_rows(ahead, weights[0]).to(self.dtype))

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:  # AdamW reads `step` in all states that are loaded
            state |= {"step": torch.zeros((), device=weight.device), "momentum": torch.zeros_like(weight)}
        return state

    def _unless_skipped(self, old: Tensor, new: Tensor) -> Tensor:
        return new if self._skip is None else torch.where(self._skip, old, new)

    @staticmethod
    def _store(tensors: list[Tensor], values: Tensor) -> None:
        """Write `values` (tensors, rows, columns) back to the tensors; the inverse of stacking their `rows`."""
        parts = [from_rows(value, local_part(tensor)) for value, tensor in zip(values.unbind(), tensors, strict=True)]
        torch._foreach_copy_([local_part(tensor) for tensor in tensors], parts)


def rows(tensor: Tensor) -> Tensor:
    """This process's rows of a matrix, or of filters (O, I, h, w) as (O, h w I): a view if they are channels_last."""
    tensor = local_part(tensor)
    return tensor.permute(0, 2, 3, 1).flatten(1) if tensor.ndim == 4 else tensor


def from_rows(values: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows`, in the shape of `like`."""
    if like.ndim != 4:
        return values
    _, channels, height, width = like.shape
    return values.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


def matrices_of(network: nn.Module) -> list[Tensor]:
    """Return the weights of the convolutions and linear layers of a network, which Muon updates."""
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (N, R, C) with the same singular vectors and singular values near 1 (Newton-Schulz)."""
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
