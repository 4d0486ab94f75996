"""Configuration of the commands as typed dataclasses.

The values are in configs/*.yaml. Hydra and OmegaConf check names and types while composing; `__post_init__` checks
ranges and combinations. Both happen before any data is read. There is no torch here, so that `--help` is quick.
"""

from ddpm_cli.config.commands import (
    CheckpointConfig,
    EvaluateConfig,
    ExportConfig,
    ForwardConfig,
    ImportConfig,
    SampleConfig,
)
from ddpm_cli.config.dataset import Cifar10, Dataset, Digits, FashionMnist, ImageDataset, ImageFolder, Mnist, SwissRoll
from ddpm_cli.config.model import ConvUNetOptions, DdpmUNetOptions, MlpOptions, Model, UNetOptions
from ddpm_cli.config.objective import (
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
from ddpm_cli.config.registry import GROUPS, MAX_SIZE, Option, implementation_of, implements, option_name
from ddpm_cli.config.sampler import Ddim, Ddpm, DpmPp2M, Heun, Sampler
from ddpm_cli.config.schedule import Constant, Cosine, Linear, Quadratic, Schedule, Sigmoid
from ddpm_cli.config.train import FEWEST, PRECISIONS, Distributed, Train, TrainConfig, check_guidance

__all__ = [
    "FEWEST",
    "GROUPS",
    "L1",
    "L2",
    "MAX_SIZE",
    "P2",
    "PRECISIONS",
    "CheckpointConfig",
    "Cifar10",
    "ClassLabels",
    "Conditioning",
    "Constant",
    "ConvUNetOptions",
    "Cosine",
    "Dataset",
    "Ddim",
    "Ddpm",
    "DdpmUNetOptions",
    "Digits",
    "Distributed",
    "DpmPp2M",
    "EvaluateConfig",
    "ExportConfig",
    "FashionMnist",
    "ForwardConfig",
    "Heun",
    "Huber",
    "Hybrid",
    "ImageDataset",
    "ImageFolder",
    "ImportConfig",
    "Linear",
    "Loss",
    "LossSecondMoment",
    "MinSnr",
    "MlpOptions",
    "Mnist",
    "Model",
    "Option",
    "Quadratic",
    "SampleConfig",
    "Sampler",
    "Schedule",
    "Sigmoid",
    "SwissRoll",
    "TimestepSampler",
    "Train",
    "TrainConfig",
    "UNetOptions",
    "Unconditional",
    "UniformTimesteps",
    "Unweighted",
    "Vlb",
    "Weighting",
    "check_guidance",
    "implementation_of",
    "implements",
    "option_name",
]
