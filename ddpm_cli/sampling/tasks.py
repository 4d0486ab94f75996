"""The tasks of `ddpm-sample`: generate, interpolate between two images, inpaint."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.checkpoints.loading import Trained
from ddpm_cli.config import ClassLabels, ImageDataset, SampleConfig
from ddpm_cli.data.sources import moved
from ddpm_cli.data.table import to_float
from ddpm_cli.data.user_images import load_user_images, read_mask
from ddpm_cli.diffusion.editing import inpaint, mix_noised
from ddpm_cli.diffusion.samplers import Step
from ddpm_cli.diffusion.sampling import GuidanceRule
from ddpm_cli.errors import UserError, check, one_of
from ddpm_cli.images.png_gif import grid, to_uint8
from ddpm_cli.images.samples import picture
from ddpm_cli.sampling.noise import ImageNoise
from ddpm_cli.sampling.sample_generator import SampleGenerator, cycle_labels

COUNTS = {"generate": 64, "interpolate": 9, "inpaint": 8}
"""Default numbers of samples."""
RESAMPLINGS = 10


@dataclass(frozen=True)
class Task:
    """A task, done batch by batch.

    Attributes:
        labels: the class of each sample, -1 for none.
        start: yields the steps of the sampler for a range of samples.
        steps: number of these steps.
        draw: returns the picture of the first samples (N, C, ...).
    """

    labels: list[int]
    start: Callable[[range], Iterator[Step]]
    steps: int
    draw: Callable[[Tensor], Image.Image]


def plan(config: SampleConfig, generator: SampleGenerator, trained: Trained) -> Task:
    """Return the task that `config` names. Raise `UserError` for an unusable class, image, mask or timestep."""
    dataset, classes = trained.config.dataset, trained.classes
    if config.task == "generate":
        wanted = wanted_classes(config.classes, classes, everything=range(len(classes)))
        return _generate(config, generator, wanted, classes)
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"task={config.task}: is for images, and this network was trained on points; use task=generate")
    wanted = _wanted_for_editing(config, trained)
    if config.classes is None:
        generator = replace(generator, rule=GuidanceRule())  # without a class there is no guidance
    work = _interpolate if config.task == "interpolate" else _inpaint
    return work(config, generator, wanted, moved(dataset, config.root))


def _wanted_for_editing(config: SampleConfig, trained: Trained) -> list[int]:
    """Return `wanted_classes`, or the null label if no class is asked for."""
    classes, conditioning = trained.classes, trained.config.conditioning
    wanted = wanted_classes(config.classes, classes, everything=[len(classes)])
    if config.classes is None:
        if isinstance(conditioning, ClassLabels) and conditioning.dropout == 0:
            raise UserError(
                f"class=null: task={config.task} needs a class, because this network was never trained without one"
            )
        if config.guidance_scale not in (None, 0, 1):
            raise UserError(f"guidance_scale={config.guidance_scale}: task={config.task} needs a class to be guided to")
        for name, value in vars(config.guidance).items():
            if value is not None:
                raise UserError(
                    f"guidance.{name}={value}: has no effect with task={config.task} and without a class; leave it out"
                )
    if config.task == "interpolate":
        check(len(wanted) < 2, "class", config.classes, "a single class with task=interpolate")
    return wanted


def wanted_classes(value: object, classes: list[str], everything: Sequence[int]) -> list[int]:
    """Return the class numbers that class=`value` asks for: `everything` for None, none for an unconditional network.

    A class is its name in any case, with spaces or _ or -, or its number. Raises `UserError` for others.
    """
    if not classes:
        if value is not None:
            raise UserError(f"class={value}: this network is unconditional; train one with conditioning=class")
        return []
    if value is None:
        return list(everything)
    exact = {name: i for i, name in enumerate(classes)}
    named = {_plain(name): i for i, name in enumerate(classes)}
    numbers = []
    for one in value if isinstance(value, list) else [value]:
        number = exact.get(str(one), named.get(_plain(str(one)), one if type(one) is int else -1))
        bounds = f"a number in 0..{len(classes) - 1} or one of {one_of(classes)}"
        check(0 <= number < len(classes), "class", one, bounds)
        numbers.append(number)
    check(len(numbers) > 0, "class", value, "a class or a list of some")
    return numbers


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ")


def _labels(config: SampleConfig, wanted: list[int]) -> list[int]:
    """Return a label for each sample: the wanted classes in turn, and zeros for an unconditional network."""
    return cycle_labels(config.n or COUNTS[config.task], wanted or [0])


def _known(labels: list[int], classes: int) -> list[int]:
    """Return `labels` with -1 for the null label."""
    return [label if label < classes else -1 for label in labels]


def _generate(config: SampleConfig, generator: SampleGenerator, wanted: list[int], classes: list[str]) -> Task:
    labels = _labels(config, wanted)
    names = [classes[label] for label in labels] if classes else None

    def start(images: range) -> Iterator[Step]:
        return generator.steps(config.seed, labels, images)

    def draw(samples: Tensor) -> Image.Image:
        return picture(samples, names and names[: len(samples)])

    return Task(_known(labels, generator.classes), start, len(generator.pairs()), draw)


def _interpolate(config: SampleConfig, generator: SampleGenerator, wanted: list[int], dataset: ImageDataset) -> Task:
    """Interpolate from a to b; the picture shows both at its ends."""
    labels, process = _labels(config, wanted), generator.denoiser.process
    t = process.timesteps // 2 if config.t is None else config.t
    check(t < process.timesteps, "t", t, f"in 0..{process.timesteps - 1}, the timesteps of the schedule")
    ends = load_user_images({"a": config.a, "b": config.b}, dataset)
    a, b = (to_float(image).to(generator.device) for image in ends)
    shares = torch.linspace(0, 1, len(labels)) if len(labels) > 1 else torch.tensor([0.5])

    def start(images: range) -> Iterator[Step]:
        noise = ImageNoise(config.seed, [0] * len(images), generator.shape, generator.device)
        part = shares[images.start : images.stop].to(generator.device)
        x = mix_noised(process, a, b, part, t, noise)
        return generator.steps_from(x, noise, generator.guidance([labels[i] for i in images]), start=t)

    def draw(samples: Tensor) -> Image.Image:
        row = torch.stack([ends[0], *to_uint8(samples), ends[1]])
        return grid(row, columns=min(len(row), 16))

    return Task(_known(labels, generator.classes), start, len(generator.pairs(t)), draw)


def _inpaint(config: SampleConfig, generator: SampleGenerator, wanted: list[int], dataset: ImageDataset) -> Task:
    """Fill the hole of an image; the picture starts with the image, and the image without the hole."""
    labels, pairs = _labels(config, wanted), generator.pairs()
    resamplings = config.resamplings or RESAMPLINGS
    (image,) = load_user_images({"image": config.image}, dataset)
    hole = read_mask(str(config.mask), config.image, dataset)
    x0, inside = to_float(image).to(generator.device), hole.to(generator.device)

    def start(images: range) -> Iterator[Step]:
        noise = ImageNoise(config.seed, images, generator.shape, generator.device)
        guidance = generator.guidance([labels[i] for i in images])
        how = generator.sampler.thresholding
        return inpaint(
            pairs, generator.denoiser, x0, inside, resamplings, generator.initial(noise), noise, how, guidance
        )

    def draw(samples: Tensor) -> Image.Image:
        row = torch.stack([image, torch.where(hole, 128, image).byte(), *to_uint8(samples)])
        return grid(row, columns=min(len(row), 16))

    return Task(_known(labels, generator.classes), start, (len(pairs) - 1) * resamplings + 1, draw)
