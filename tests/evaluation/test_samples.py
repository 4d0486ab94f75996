from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_cli.config import Ddim, DpmPp2M, DpmPp2MSde, DpmPp3M, Edm, Euler, FashionMnist, Heun, Sampler, UniPc
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.sampling import GuidanceRule
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.samples import GeneratedSamples, read_sample_images
from ddpm_cli.images.png_gif import save_png, to_image, to_uint8
from ddpm_cli.sampling.sample_generator import SampleGenerator
from tests.conftest import a_sampler, composed

DIGITS = FashionMnist(root=None, image_size=[6, 4], channels=1, flip=False)


def generator(kind: type[Sampler] = Ddim, classes: int = 0, scale: float = 1.0) -> SampleGenerator:
    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return x * 0.3 if y is None else x * 0.1 * y.view(-1, 1, 1, 1)

    process = Process(path_of(composed("schedule=cosine", "schedule.timesteps=40", "sampler.steps=8").schedule))
    denoiser = Denoiser(network, process, "eps")
    return SampleGenerator(
        denoiser, a_sampler(kind, steps=8), (1, 6, 4), torch.device("cpu"), classes, GuidanceRule(scale)
    )


@pytest.mark.parametrize("batch_size", [2, 5, 64])
@pytest.mark.parametrize("kind", [Ddim, Euler, Heun, Edm, DpmPp2M, DpmPp2MSde, DpmPp3M, UniPc])
def test_images_do_not_depend_on_the_batch_size(kind: type[Sampler], batch_size: int) -> None:
    samples = list(GeneratedSamples(generator(kind), 5, 3, batch_size))
    assert [len(part) for part in samples] == {2: [2, 2, 1], 5: [5], 64: [5]}[batch_size]
    *_, last = generator(kind).steps(3, [0] * 5, range(5))
    torch.testing.assert_close(torch.cat(samples), to_uint8(last.x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "classes", "scale", "nfe"),
    [
        (Ddim, 0, 1.0, 8),
        (DpmPp2M, 0, 1.0, 8),
        (DpmPp2MSde, 0, 1.0, 8),
        (DpmPp3M, 0, 1.0, 8),
        (UniPc, 0, 1.0, 8),
        (Euler, 0, 1.0, 8),
        (Heun, 0, 1.0, 14),
        (Edm, 0, 1.0, 14),
        (Ddim, 3, 1.0, 8),
        (Ddim, 3, 2.0, 16),
    ],
)
def test_network_evaluations_are_counted(kind: type[Sampler], classes: int, scale: float, nfe: int) -> None:
    """Guidance evaluates with and without the class, Heun's method twice per step.

    But it takes Euler steps from T-1, which is nearly without signal on the cosine schedule, and to the data.
    """
    samples = GeneratedSamples(generator(kind, classes, scale), 5, 0, 2)
    assert sum(map(len, samples)) == 5
    assert samples.nfe == nfe


def test_classes_are_cycled() -> None:
    """As in ddpm-sample, image i has the class i modulo the number of classes."""
    of_three = torch.cat(list(GeneratedSamples(generator(classes=3), 4, 0, 64)))
    *_, last = generator(classes=3).steps(0, [0, 1, 2, 0], range(4))
    torch.testing.assert_close(of_three, to_uint8(last.x), rtol=0, atol=0)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (3, 1, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_images_from_a_folder(tmp_path: Path, images: Tensor) -> None:
    for i, image in enumerate(images):
        save_png(to_image(image), tmp_path / f"{i:05d}.png")
    torch.testing.assert_close(read_sample_images(str(tmp_path), DIGITS, tmp_path / "cache"), images, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["images", "arr_0"])
def test_images_from_an_npz_file(key: str, tmp_path: Path, images: Tensor) -> None:
    np.savez(tmp_path / "x.npz", **{key: images.permute(0, 2, 3, 1).numpy(), "labels": np.zeros(3)})
    torch.testing.assert_close(read_sample_images(str(tmp_path / "x.npz"), DIGITS, tmp_path), images, rtol=0, atol=0)


def test_npz_file_with_another_shape_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, images=np.zeros((3, 5, 4, 1), dtype=np.uint8))
    with pytest.raises(
        UserError, match=r"contains uint8 of shape \(3, 5, 4, 1\); for dataset=fashion_mnist must be uint8 of shape \(N"
    ):
        read_sample_images(str(file), DIGITS, tmp_path)


@pytest.mark.parametrize("what", ["missing", "text", "pickle", "empty", "other"])
def test_files_without_images_are_rejected(what: str, tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    match what:
        case "text":
            file.write_text("no zip")
        case "pickle":
            np.savez(file, images=np.array([{"a": 1}], dtype=object))
        case "other":
            np.savez(file, pictures=np.zeros(3))
        case "empty":
            file.touch()
    with pytest.raises(UserError, match=r"samples=.*x.npz: must be a folder of images, or an npz file with images as"):
        read_sample_images(str(file), DIGITS, tmp_path)


def test_folder_without_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^samples=.*: no images"):
        read_sample_images(str(tmp_path), DIGITS, tmp_path / "cache")
