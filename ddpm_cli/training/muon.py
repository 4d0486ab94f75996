"""The Muon optimizer: matrices are updated by their orthogonalised momentum."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ddpm_cli.distributed.sharding import local_part, shard_rows, unshard_rows

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of a s + b s**3 + c s**5, which, applied `TIMES` times, moves singular values s in (0, 1] towards 1.

Those in [0.0016, 1] end in [0.68, 1.21]. Smaller ones are only multiplied by up to a**5 = 485: 1e-4 ends at 0.048.
"""
TIMES = 5
WIDE = 4
"""Ratio of the sides up to which matrices are padded together; 3x3 filters are mostly above it, 1x1 filters below."""


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
        pad: pad matrices of similar shapes with zeros, which changes neither singular values nor vectors, and update
            them together. This is more arithmetic in fewer kernels, which suits a GPU.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float | Tensor,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype,
        capturable: bool = False,
        pad: bool = False,
    ) -> None:
        parameters = network.parameters()
        super().__init__(parameters, lr, betas, weight_decay=0.0, fused=True, capturable=capturable)
        self.matrices = matrices_of(network)
        self.matrix_decay = weight_decay
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self.batches = batches_of(self.matrices, pad)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters once, or none if `found_inf` is set, as for torch's fused optimizers."""
        lr, found_inf = self.param_groups[0]["lr"], getattr(self, "found_inf", None)
        found_inf = torch.zeros((), device=self.matrices[0].device) if found_inf is None else local_part(found_inf)
        skip = found_inf > 0
        rate = torch.where(skip, 0.0, lr)
        kept = 1 - rate * self.matrix_decay
        for weights in self.batches:
            update = self._update(weights, skip)
            self._store(weights, torch.addcmul(_flat(weights) * kept, update, rate, value=-1))
        torch._foreach_add_([self.state[weight]["step"] for weight in self.matrices], 1)
        for weight in self.matrices:
            weight.grad = None  # so that AdamW skips it
        super().step()

    def _update(self, weights: list[Tensor], skip: Tensor) -> Tensor:
        """Update the momenta of a batch of weights unless `skip`; return the update of the weights, flat."""
        momenta = [self._momentum(weight) for weight in weights]
        old = _flat(momenta)
        gradient = torch.where(skip, old, _flat([weight.grad for weight in weights if weight.grad is not None]))
        momentum = old.lerp(gradient, 1 - MOMENTUM)
        self._store(momenta, momentum)
        ahead = gradient.lerp(momentum, MOMENTUM)
        if len({weight.shape for weight in weights}) > 1:
            return self._padded_directions(ahead, weights)
        stacked = unshard_rows(ahead.view(len(weights), *rows(weights[0]).shape), weights[0])
        direction = orthogonal(stacked.to(self.dtype)).to(ahead.dtype)
        return shard_rows(direction * _length(direction[0]), weights[0]).flatten()

    def _padded_directions(self, ahead: Tensor, weights: list[Tensor]) -> Tensor:
        """Return the update of weights that have one short side and different long sides, flat."""
        parts = _parts(ahead, weights)
        padded = ahead.new_zeros(len(parts), min(parts[0].shape), max(max(x.shape) for x in parts), dtype=self.dtype)
        torch._foreach_copy_(_corners(padded, parts), parts)
        update = torch.empty_like(ahead)
        made = _parts(update, weights)
        torch._foreach_copy_(made, _corners(orthogonal(padded), parts))
        torch._foreach_mul_(made, [_length(part) for part in parts])
        return update

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:  # AdamW reads `step` in all states that are loaded
            state |= {"step": torch.zeros((), device=weight.device), "momentum": torch.zeros_like(weight)}
        momentum: Tensor = state["momentum"]
        return momentum

    @staticmethod
    def _store(tensors: list[Tensor], values: Tensor) -> None:
        """Write `values`, which are flat, back to the tensors; the inverse of `_flat`."""
        parts = [from_rows(part, local_part(x)) for part, x in zip(_parts(values, tensors), tensors, strict=True)]
        torch._foreach_copy_([local_part(tensor) for tensor in tensors], parts)


def _length(matrix: Tensor) -> float:
    """Return the factor that makes the update by an orthogonal matrix as large as AdamW's."""
    return 0.2 * math.sqrt(max(matrix.shape))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return the `rows` of all tensors in one vector."""
    return torch.cat([rows(tensor).flatten() for tensor in tensors])


def _parts(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return views of a vector that have the shapes of the `rows` of tensors."""
    shapes = [rows(tensor).shape for tensor in tensors]
    sizes = [shape.numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def _corners(padded: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Return views of padded, wide matrices (N, R, C) that have the shapes of `like`, tall ones transposed."""
    corners = [matrix[:, : max(part.shape)] for matrix, part in zip(padded, like, strict=True)]
    tall = [part.shape[0] > part.shape[1] for part in like]
    return [corner.mT if is_tall else corner for corner, is_tall in zip(corners, tall, strict=True)]


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
    """Return matrices (N, R, C) with the same singular vectors and singular values near 1 (Newton-Schulz).

    Singular values of at least 0.0016 times the Frobenius norm of their matrix end in [0.68, 1.21] if the matrices are
    float32, smaller ones between 0 and that.
    """
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(TIMES):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if wide is not matrices else x


def batches_of(weights: list[Tensor], pad: bool) -> list[list[Tensor]]:
    """Return the weights that are updated together: those of one shape, or of similar shapes if they are padded."""
    alike: dict[tuple[int, ...], list[Tensor]] = {}
    for weight in weights:
        matrix = rows(weight)
        short, long = min(matrix.shape), max(matrix.shape)
        key = (short, long > WIDE * short) if pad else tuple(weight.shape)
        alike.setdefault(key, []).append(weight)
    return list(alike.values())
