from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm_cli.sampling.build import network_of
from tests.benchmarks.data import image_loader, write_split
from tests.benchmarks.input import LOADER, TABLE, Inputs
from tests.benchmarks.sampling import IMAGES, TIMED, our_steps
from tests.benchmarks.systems import System, flops, parameters, systems
from tests.benchmarks.systems.ours import composed
from tests.benchmarks.systems.reference import Diffusion, Unet, reference_steps
from tests.benchmarks.worker import Worker

COUNT = 40
PLAIN = systems(Path(), 4, extras=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a few noise images for torchvision and return their folder."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT, 28, 28), generator=generator, dtype=torch.uint8)
    for split in ("train", "t10k"):
        write_split(folder, split, pixels, torch.arange(COUNT).byte() % 10)
    return folder


def test_reference_has_the_same_parameters() -> None:
    ours = network_of(composed("experiment=annotated"), [])
    assert parameters(Unet()) == pytest.approx(parameters(ours), rel=1e-3)
    shapes = [sorted(tuple(p.shape) for p in network.parameters()) for network in (Unet(), ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", PLAIN)
def test_step_updates_the_network(name: str, data: Path, tmp_path: Path) -> None:
    system = systems(data, 4, extras=False)[name]()
    before = [parameter.clone() for parameter in system.network.parameters()]
    system.step()
    after = list(system.network.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > 0.9 * len(after)
    system.save(tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(sizes) > 3 * 4 * parameters(system.network)  # the weights and both moments of Adam


def test_loader_and_table_return_the_same_images(data: Path) -> None:
    """Compare the images of an epoch, up to flips and order."""
    found = Inputs(data, COUNT)
    ours, theirs = next(found.batches[TABLE]).x0, next(found.batches[LOADER])[0]
    assert ours.shape == theirs.shape == (COUNT, 1, 28, 28)
    sums = [batch.sum(dim=(1, 2, 3)).sort().values for batch in (ours, theirs)]
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=1e-3)
    assert len(list(image_loader(data, 16, workers=0))) == 3


def test_reference_process_matches_the_text() -> None:
    diffusion = Diffusion(300)
    assert diffusion.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert diffusion.sqrt_alphas_cumprod[-1].item() ** 2 == pytest.approx(0.048, abs=5e-4)
    x0, noise = torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 1, 2, 2)
    noised = diffusion.q_sample(x0, torch.tensor([0]), noise)
    torch.testing.assert_close(noised, torch.full_like(x0, 3 * 0.9999**0.5 + 0.01))

    def perfect_network(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (x - 0.9999**0.5 * x0) / 0.01

    torch.testing.assert_close(diffusion.p_sample(perfect_network, noised, 0), x0)


def test_samplers_have_the_number_of_steps() -> None:
    assert len(list(reference_steps(300, 1, TIMED))) == TIMED
    for sampler in ("dpmpp_2m", "ddim", "ddpm"):
        first = next(our_steps(sampler, 300, "fp32"))
        assert first.x.shape == (IMAGES, 1, 28, 28)


class Products(nn.Module):
    """A linear layer from 3 to 5 features, and attention between 7 positions of 2 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 5)

    def step(self) -> None:
        self.network(torch.ones(2, 3)).sum().backward()
        q = torch.ones(1, 1, 7, 2)
        nn.functional.scaled_dot_product_attention(q, q, q)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def test_flops_count_matrix_products_forward_and_backward() -> None:
    system: System = Products()
    linear = 2 * 2 * 3 * 5
    assert flops(system) == 2 * linear + 2 * (2 * 7 * 7 * 2)


def twice(built: list[int], factor: int) -> int:
    return factor * len(built)


def test_worker_is_timed() -> None:
    with Worker(list, threads=1) as worker:
        assert worker.call(twice, 2) == 0
        worker.call(list.append, 1)
        assert worker.call(twice, 2) == 2
        assert 0 < worker.seconds(twice, 2) < 60
        with pytest.raises(RuntimeError, match="ended before"):
            worker.call(list.pop, 9)
