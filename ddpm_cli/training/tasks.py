"""What `ddpm-sample` can be asked for: new examples, a way from one image to another, a hole filled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.config import SampleConfig
from ddpm_cli.data.given import read_image, read_mask
from ddpm_cli.data.table import to_float
from ddpm_cli.diffusion.editing import inpaint, interpolate
from ddpm_cli.diffusion.samplers import Step
from ddpm_cli.diffusion.timesteps import pairs_of
from ddpm_cli.errors import UserError, check, one_of
from ddpm_cli.imaging import grid, to_uint8
from ddpm_cli.options import ImageDataset
from ddpm_cli.pictures import picture
from ddpm_cli.training.generate import Generator, ImageNoise, in_turn

COUNTS = {"generate": 64, "interpolate": 9, "inpaint": 8}
"""Examples made where n is not given."""


@dataclass(frozen=True)
class Task:
    """Work to do, a batch at a time.

    labels: the class of each example, -1 for none. batches: which examples, and the steps that make them.
    steps: how many those are for a batch. draw: the picture of examples made (N, C, ...), the first ones.
    """

    labels: list[int]
    batches: Iterator[tuple[range, Iterator[Step]]]
    steps: int
    draw: Callable[[Tensor], Image.Image]


def plan(config: SampleConfig, generator: Generator, classes: list[str], dataset: object) -> Task:
    """The task that `config` names. `classes`: of the network. `dataset`: that it learned.

    Raises `UserError` for a class, an image, a mask or a timestep that will not do.
    """
    wanted = wanted_classes(config.classes, classes)
    labels = in_turn(config.n or COUNTS[config.task], wanted or [0])
    shown = labels if wanted else [-1] * len(labels)
    if config.task == "generate":
        return _generate(config, generator, labels, shown, classes)
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"task={config.task}: is for images, and this network learned points; use task=generate")
    work = _interpolate if config.task == "interpolate" else _inpaint
    return work(config, generator, labels, shown, dataset)


def wanted_classes(value: object, classes: list[str]) -> list[int]:
    """The class numbers that class=`value` asks for: all where it is None, none where there are no classes.

    A class is a number, or its name in any case, with spaces or _ or -. Raises `UserError` for others.
    """
    if not classes:
        if value is not None:
            raise UserError(f"class={value}: this network is not told classes; train one with conditioning=class")
        return []
    if value is None:
        return list(range(len(classes)))
    named = {_plain(name): i for i, name in enumerate(classes)}
    numbers = []
    for one in value if isinstance(value, list) else [value]:
        number = one if type(one) is int else named.get(_plain(str(one)), -1)
        bounds = f"a number in 0..{len(classes) - 1} or one of {one_of(classes)}"
        check(0 <= number < len(classes), "class", one, bounds)
        numbers.append(number)
    check(len(numbers) > 0, "class", value, "a class or a list of some")
    return numbers


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ")


def _generate(
    config: SampleConfig, generator: Generator, labels: list[int], shown: list[int], classes: list[str]
) -> Task:
    batches = generator.batches(config.seed, labels, config.batch_size)
    names = [classes[label] for label in labels] if classes else None

    def draw(samples: Tensor) -> Image.Image:
        return picture(samples, names and names[: len(samples)])

    return Task(shown, batches, len(pairs_of(generator.sampler, generator.denoiser.process)), draw)


def _interpolate(
    config: SampleConfig, generator: Generator, labels: list[int], shown: list[int], dataset: ImageDataset
) -> Task:
    """Mixes of a and b, from one to the other; the picture has the two at its ends."""
    process = generator.denoiser.process
    t = process.timesteps // 2 if config.t is None else config.t
    check(t < process.timesteps, "t", t, f"in 0..{process.timesteps - 1}, the timesteps of the schedule")
    ends = [read_image("a", config.a, dataset), read_image("b", config.b, dataset)]
    a, b = (to_float(image).to(generator.device) for image in ends)
    shares = torch.linspace(0, 1, len(labels)) if len(labels) > 1 else torch.tensor([0.5])

    def steps(images: range) -> Iterator[Step]:
        noise = ImageNoise(config.seed, [0] * len(images), generator.shape, generator.device)
        part = shares[images.start : images.stop].to(generator.device)
        guidance = generator.guidance([labels[i] for i in images])
        return interpolate(generator.sampler, generator.denoiser, a, b, part, t, noise, guidance)

    def draw(samples: Tensor) -> Image.Image:
        row = torch.stack([ends[0], *to_uint8(samples), ends[1]])
        return grid(row, columns=min(len(row), 16))

    return Task(shown, _split(labels, config, steps), len(pairs_of(generator.sampler, process, t)), draw)


def _inpaint(
    config: SampleConfig, generator: Generator, labels: list[int], shown: list[int], dataset: ImageDataset
) -> Task:
    """Fillings of the hole; the picture begins with the image, and with the image less the hole."""
    image = read_image("image", config.image, dataset)
    hole = read_mask(str(config.mask), config.image, dataset)
    x0, inside = to_float(image).to(generator.device), hole.to(generator.device)

    def steps(images: range) -> Iterator[Step]:
        noise = ImageNoise(config.seed, images, generator.shape, generator.device)
        guidance = generator.guidance([labels[i] for i in images])
        return inpaint(generator.sampler, generator.denoiser, x0, inside, config.resamplings, noise(), noise, guidance)

    def draw(samples: Tensor) -> Image.Image:
        row = torch.stack([image, torch.where(hole, 128, image).byte(), *to_uint8(samples)])
        return grid(row, columns=min(len(row), 16))

    strides = len(pairs_of(generator.sampler, generator.denoiser.process))
    return Task(shown, _split(labels, config, steps), (strides - 1) * config.resamplings + 1, draw)


def _split(
    labels: Sequence[int], config: SampleConfig, steps: Callable[[range], Iterator[Step]]
) -> Iterator[tuple[range, Iterator[Step]]]:
    for first in range(0, len(labels), config.batch_size):
        images = range(first, min(first + config.batch_size, len(labels)))
        yield images, steps(images)
