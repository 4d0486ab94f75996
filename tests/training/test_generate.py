import pytest
import torch

from ddpm_cli.training.build import build_denoiser, network_of
from ddpm_cli.training.generate import Generator, ImageNoise, batches_that_fit
from tests.conftest import TINY, composed

CPU = torch.device("cpu")


def test_image_i_gets_the_same_noise_whatever_is_beside_it() -> None:
    together = ImageNoise(7, range(4), (1, 2, 2), CPU)
    alone = ImageNoise(7, range(2, 3), (1, 2, 2), CPU)
    for _ in range(3):
        assert torch.equal(together()[2], alone()[0])
    assert not torch.equal(ImageNoise(8, range(4), (1, 2, 2), CPU)(), ImageNoise(7, range(4), (1, 2, 2), CPU)())


@pytest.mark.parametrize("sampler", ["sampler=ddim", "sampler=ddpm"])
def test_images_do_not_depend_on_n_and_batch_size(sampler: str) -> None:
    torch.manual_seed(0)
    config = composed(*TINY, sampler, "sampler.steps=10")
    network = network_of(config, []).eval()
    denoiser = build_denoiser(config, network, CPU, torch.float32)

    def images(n: int, batch_size: int) -> torch.Tensor:
        generator = Generator(denoiser, config.sampler, (1, 8, 8), CPU)
        batches = batches_that_fit(n, batch_size, lambda images: [*generator.steps(7, [0] * n, images)][-1].x)
        return torch.cat([x for _, x in batches])

    reference = images(9, 9)
    assert reference.shape == (9, 1, 8, 8)
    assert reference.std(dim=0).mean() > 0.01  # they do differ from each other
    for n, batch_size in [(9, 1), (9, 4), (5, 3)]:
        assert torch.allclose(images(n, batch_size), reference[:n], atol=1 / 255)
