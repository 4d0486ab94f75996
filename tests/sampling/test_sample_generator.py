import pytest
import torch

from ddpm_cli.errors import Failure
from ddpm_cli.sampling.build import build_denoiser, network_of
from ddpm_cli.sampling.sample_generator import SampleGenerator, batches_with_oom_retry
from tests.conftest import TINY, composed

CPU = torch.device("cpu")


@pytest.mark.parametrize("sampler", ["sampler=ddim", "sampler=ddpm"])
def test_images_do_not_depend_on_n_and_batch_size(sampler: str) -> None:
    torch.manual_seed(0)
    config = composed(*TINY, sampler, "sampler.steps=10")
    network = network_of(config, []).eval()
    denoiser = build_denoiser(config, network, CPU, torch.float32)

    def images(n: int, batch_size: int) -> torch.Tensor:
        generator = SampleGenerator(denoiser, config.sampler, (1, 8, 8), CPU)
        batches = batches_with_oom_retry(n, batch_size, lambda images: [*generator.steps(7, [0] * n, images)][-1].x)
        return torch.cat([x for _, x in batches])

    reference = images(9, 9)
    assert reference.shape == (9, 1, 8, 8)
    assert reference.std(dim=0).mean() > 0.01  # the images differ from each other
    for n, batch_size in [(9, 1), (9, 4), (5, 3)]:
        assert torch.allclose(images(n, batch_size), reference[:n], atol=1 / 255)


class Device:
    """A device whose memory suffices for batches of `max_batch`."""

    def __init__(self, max_batch: int, error: Exception) -> None:
        self.max_batch, self.error = max_batch, error
        self.requested: list[range] = []

    def work(self, images: range) -> list[int]:
        self.requested.append(images)
        if len(images) > self.max_batch:
            raise self.error
        return [*images]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "mps", "cpu", "cudnn", "cublas", "engine"])
def test_out_of_memory_halves_the_batch(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(3, error)
    batches = [*batches_with_oom_retry(20, 16, device.work)]
    assert [i for _, part in batches for i in part] == [*range(20)]
    assert [len(images) for images in device.requested] == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    (message,) = caplog.messages
    assert "out of memory with batches of 16; continuing with 2" in message


def test_out_of_memory_with_one_image_is_one_line() -> None:
    with pytest.raises(Failure, match="batch_size=1: takes more memory than the device has"):
        [*batches_with_oom_retry(3, 2, Device(0, OUT_OF_MEMORY[0]).work)]


def test_other_errors_are_not_treated_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        [*batches_with_oom_retry(3, 2, Device(0, RuntimeError("shape")).work)]
