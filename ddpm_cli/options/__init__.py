"""The options of the config groups as typed dataclasses, with what is allowed.

The values stand in configs/<group>/*.yaml. Hydra and OmegaConf check names and types while composing,
`__post_init__` checks the rest, both before any data is read. Keys in messages are written as typed.
No torch here: `--help` must be quick.
"""

from ddpm_cli.options.dataset import (
    Cifar10,
    Dataset,
    Digits,
    FashionMnist,
    ImageDataset,
    ImageFolder,
    Mnist,
    SwissRoll,
)
from ddpm_cli.options.model import ConvUNet, DdpmUNet, Mlp, Model, UNet
from ddpm_cli.options.objective import (
    L1,
    L2,
    P2,
    ClassLabels,
    Conditioning,
    Huber,
    Hybrid,
    Loss,
    LossSecondMoment,
    MinSnr,
    TimestepSampler,
    Unconditional,
    UniformTimesteps,
    Unweighted,
    Vlb,
    Weighting,
)
from ddpm_cli.options.option import MAX_SIZE, Option, option_name
from ddpm_cli.options.sampler import Ddim, Ddpm, DpmPp2M, Heun, Sampler
from ddpm_cli.options.schedule import Constant, Cosine, Linear, Quadratic, Schedule, Sigmoid

GROUPS: dict[type[Option], list[type[Option]]] = {
    Dataset: [FashionMnist, Cifar10, Mnist, ImageFolder, Digits, SwissRoll],
    Schedule: [Linear, Cosine, Quadratic, Sigmoid, Constant],
    Loss: [L1, L2, Huber, Hybrid, Vlb],
    Weighting: [Unweighted, MinSnr, P2],
    TimestepSampler: [UniformTimesteps, LossSecondMoment],
    Conditioning: [Unconditional, ClassLabels],
    Model: [UNet, DdpmUNet, ConvUNet, Mlp],
    Sampler: [Ddpm, Ddim, DpmPp2M, Heun],
}
"""Each group's base class and its options."""

__all__ = [
    "GROUPS",
    "L1",
    "L2",
    "MAX_SIZE",
    "P2",
    "Cifar10",
    "ClassLabels",
    "Conditioning",
    "Constant",
    "ConvUNet",
    "Cosine",
    "Dataset",
    "Ddim",
    "Ddpm",
    "DdpmUNet",
    "Digits",
    "DpmPp2M",
    "FashionMnist",
    "Heun",
    "Huber",
    "Hybrid",
    "ImageDataset",
    "ImageFolder",
    "Linear",
    "Loss",
    "LossSecondMoment",
    "MinSnr",
    "Mlp",
    "Mnist",
    "Model",
    "Option",
    "Quadratic",
    "Sampler",
    "Schedule",
    "Sigmoid",
    "SwissRoll",
    "TimestepSampler",
    "UNet",
    "Unconditional",
    "UniformTimesteps",
    "Unweighted",
    "Vlb",
    "Weighting",
    "option_name",
]
