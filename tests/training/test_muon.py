"""Compare Muon with the singular value decomposition, and on matrices with torch.optim.Muon where it exists."""

import pytest
import torch
from torch import nn

from ddpm_cli.training.muon import QUINTIC, Muon, matrices_of, orthogonal

BETAS = (0.9, 0.999)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 4), nn.Embedding(5, 4))


def _with_gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 6, 20), (3, 20, 6), (1, 5, 5)])
def test_orthogonalisation_keeps_singular_vectors(shape: tuple[int, ...]) -> None:
    u = torch.linalg.qr(torch.randn(shape[0], shape[1], min(shape[1:]), generator=torch.Generator().manual_seed(0)))[0]
    v = torch.linalg.qr(torch.randn(shape[0], shape[2], min(shape[1:]), generator=torch.Generator().manual_seed(1)))[0]
    values = torch.linspace(1, 9, min(shape[1:]))
    made = u.mT @ orthogonal(u * values @ v.mT) @ v
    diagonal = made.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.65) & (diagonal < 1.25)).all()
    assert torch.allclose(made, torch.diag_embed(diagonal), atol=1e-4)


def test_small_singular_values_stay_small() -> None:
    """A matrix with the singular values s and sqrt(1 - s^2) has the norm 1."""
    small = torch.cat([torch.tensor([1e-6, 1e-4]), torch.linspace(0.0016, 0.9999, 5000)]).double()
    first = orthogonal(torch.diag_embed(torch.stack([small, (1 - small**2).sqrt()], dim=1)))[:, 0, 0]
    assert first[0].item() == pytest.approx(QUINTIC[0] ** 5 * 1e-6, rel=1e-3)
    assert first[1].item() == pytest.approx(0.048, abs=0.001)
    assert 0.68 < first[2:].min() < first[2:].max() < 1.21


def test_zero_matrices_stay_zero() -> None:
    assert not orthogonal(torch.zeros(2, 3, 4)).any()


def test_convolutions_and_linear_layers_are_matrices() -> None:
    network = _network()
    assert [tuple(weight.shape) for weight in matrices_of(network)] == [(8, 3, 3, 3), (4, 8)]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
def test_muon_matches_torch_muon_and_adamw() -> None:
    ours, theirs = _network(), _network()
    optimizer = Muon(ours, 0.01, BETAS, 0.1, torch.bfloat16)
    matrices = {id(weight) for weight in matrices_of(theirs)}
    flat = [nn.Parameter(weight.detach().flatten(1)) for weight in matrices_of(theirs)]
    muon = torch.optim.Muon(flat, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([p for p in theirs.parameters() if id(p) not in matrices], 0.01, BETAS, weight_decay=0.0)
    for step in range(4):
        _with_gradients(ours, step)
        _with_gradients(theirs, step)
        for weight, matrix in zip(matrices_of(theirs), flat, strict=True):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)
        optimizer.step()
        muon.step()
        adamw.step()
    for weight, matrix in zip(matrices_of(ours), flat, strict=True):
        assert torch.allclose(weight.flatten(1), matrix, atol=2e-4)  # bf16 products, summed in another order
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.ndim > 1 or torch.allclose(a, b)
    assert torch.allclose(ours[4].weight, theirs[4].weight)


def test_padding_changes_nothing() -> None:
    """Matrices of several shapes, wide and tall, are updated as each by itself."""
    networks = []
    for pad in (False, True):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 4), nn.Linear(4, 9), nn.Linear(7, 4), nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3)]
        network = nn.ModuleList(layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = Muon(network, 0.01, BETAS, 0.1, torch.float32, pad=pad)
        assert len(optimizer.batches) == (2 if pad else 5)
        for step in range(3):
            _with_gradients(network, step)
            optimizer.step()
        networks.append(network)
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_the_update_is_as_large_as_that_of_adamw() -> None:
    """The root mean square of an update is 0.2 times the learning rate, whatever the shape."""
    network = _network()
    before = [weight.detach().clone() for weight in matrices_of(network)]
    _with_gradients(network, 0)
    Muon(network, 0.01, BETAS, 0.0, torch.float32).step()
    for old, new in zip(before, matrices_of(network), strict=True):
        assert (new - old).square().mean().sqrt().item() == pytest.approx(0.002, rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_update_does_not_depend_on_the_scale_of_the_gradients(dtype: torch.dtype) -> None:
    """The update must not depend on the scale of the gradient; fp16 has only one or two bits at 1e-7."""
    large, small = _network(), _network()
    for network, size in ((large, 1.0), (small, 1e-6)):
        _with_gradients(network, 0)
        for weight in matrices_of(network):
            assert weight.grad is not None
            weight.grad *= size
        Muon(network, 0.01, BETAS, 0.0, dtype).step()
    for a, b in zip(matrices_of(large), matrices_of(small), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_non_finite_gradient_skips_the_update() -> None:
    network = _network()
    optimizer = Muon(network, 0.01, BETAS, 0.1, torch.float32)
    _with_gradients(network, 0)
    optimizer.step()
    before = [p.detach().clone() for p in network.parameters()]
    momenta = [optimizer.state[weight]["momentum"].clone() for weight in optimizer.matrices]
    _with_gradients(network, 1)
    network[0].weight.grad[0, 0, 0, 0] = torch.nan
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    for weight, momentum in zip(optimizer.matrices, momenta, strict=True):
        assert torch.equal(optimizer.state[weight]["momentum"], momentum)
