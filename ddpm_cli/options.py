"""The options of the config groups as typed dataclasses, with what is allowed.

The values stand in configs/<group>/*.yaml. Hydra and OmegaConf check names and types while composing,
`__post_init__` checks the rest, both before any data is read. Keys in messages are written as typed.
No torch here: `--help` must be quick.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from ddpm_cli.errors import UserError, check, one_of

ATTENTIONS = ("none", "linear", "full")
MAX_SIZE = 4096
"""Pixels a side, channels a level: far above what fits, far below what overflows."""


@dataclass(kw_only=True)
class Option:
    """One option of a config group; `name` says which, in checkpoints too."""

    name: str

    def __post_init__(self) -> None:
        group = next(base for base in type(self).__mro__ if Option in base.__bases__).__name__.lower()
        own = option_name(type(self))
        check(self.name == own, f"{group}.name", self.name, f"{own}; {group}=… chooses another option")


def option_name(option: type[Option]) -> str:
    return str(next(field.default for field in fields(option) if field.name == "name"))


# --- dataset ---------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Dataset(Option):
    """Images scaled to [-1, 1]. `image_size` is a side, or [height, width]; other sizes are resized to it."""

    root: str | None  # where to look first; None: the usual places
    image_size: Any
    channels: int  # 1 gray, 3 RGB; the network takes it from here
    flip: bool  # mirror every other image, at random, in training

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.channels in (1, 3), "dataset.channels", self.channels, "1 (gray) or 3 (colour)")
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size]
        ok = len(sides) in (1, 2) and all(type(side) is int and 1 <= side <= MAX_SIZE for side in sides)
        check(ok, "dataset.image_size", self.image_size, f"a side in 1..{MAX_SIZE} pixels, or [height,width]")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size]
        return self.channels, sides[0], sides[-1]


@dataclass(kw_only=True)
class FashionMnist(Dataset):
    name: str = "fashion_mnist"


@dataclass(kw_only=True)
class Mnist(Dataset):
    name: str = "mnist"


@dataclass(kw_only=True)
class Cifar10(Dataset):
    name: str = "cifar10"


@dataclass(kw_only=True)
class Digits(Dataset):
    name: str = "digits"


@dataclass(kw_only=True)
class ImageFolder(Dataset):
    name: str = "image_folder"
    test_fraction: float  # held out where the folder has no train/ and test/ of its own
    skip_broken: bool  # go on without files that cannot be decoded

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.root is not None, "dataset.root", "null", "a folder of images: dataset.root=/pictures")
        check(0 <= self.test_fraction < 1, "dataset.test_fraction", self.test_fraction, "in [0, 1)")


# --- schedule --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Schedule(Option):
    """The betas of the forward process; `timesteps` is T."""

    timesteps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.timesteps <= 100_000, "schedule.timesteps", self.timesteps, "in 1..100000")


@dataclass(kw_only=True)
class Ramp(Schedule):
    """Betas that rise from `beta_start` to `beta_end`; `rescale` multiplies both by 1000/T."""

    beta_start: float
    beta_end: float
    rescale: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1e-8 <= self.beta_start < 1, "schedule.beta_start", self.beta_start, "in [1e-8, 1)")
        bounds = f"in [schedule.beta_start={self.beta_start}, 1)"
        check(self.beta_start <= self.beta_end < 1, "schedule.beta_end", self.beta_end, bounds)
        if self.scale * self.beta_end >= 1:
            raise UserError(
                f"schedule.timesteps={self.timesteps}: schedule.rescale=true scales beta_end={self.beta_end} "
                f"by 1000/{self.timesteps} to {self.scale * self.beta_end:.3g}, which must stay below 1; "
                f"use more than {int(1000 * self.beta_end)} timesteps or schedule.rescale=false"
            )

    @property
    def scale(self) -> float:
        """What the betas are multiplied by."""
        return 1000 / self.timesteps if self.rescale else 1.0


@dataclass(kw_only=True)
class Linear(Ramp):
    name: str = "linear"


@dataclass(kw_only=True)
class Quadratic(Ramp):
    name: str = "quadratic"


@dataclass(kw_only=True)
class Sigmoid(Ramp):
    name: str = "sigmoid"


@dataclass(kw_only=True)
class Cosine(Schedule):
    name: str = "cosine"
    s: float  # keeps the first betas from being too small
    max_beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.s < 1, "schedule.s", self.s, "in [0, 1)")
        check(0 < self.max_beta < 1, "schedule.max_beta", self.max_beta, "in (0, 1)")


@dataclass(kw_only=True)
class Constant(Schedule):
    name: str = "constant"
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1e-8 <= self.beta < 1, "schedule.beta", self.beta, "in [1e-8, 1)")


# --- loss ------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Loss(Option):
    """The distance between the network's output and its target."""


@dataclass(kw_only=True)
class L1(Loss):
    name: str = "l1"


@dataclass(kw_only=True)
class L2(Loss):
    name: str = "l2"


@dataclass(kw_only=True)
class Huber(Loss):
    name: str = "huber"
    delta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.delta < math.inf, "loss.delta", self.delta, "a finite number above 0")


# --- model -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Model(Option):
    """A U-Net: one level per entry of `multipliers`, each half the resolution of the one above."""

    width: int
    multipliers: list[int]
    blocks: int  # residual blocks a level
    attention: list[str]  # a kind per level
    dropout: float
    groups: int  # of the group norms
    self_condition: bool  # the network also sees its last estimate of x0 (Chen et al. 2022)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.width <= MAX_SIZE, "model.width", self.width, f"in 1..{MAX_SIZE}")
        ok = 1 <= len(self.multipliers) <= 8 and all(1 <= m <= 64 for m in self.multipliers)
        check(ok, "model.multipliers", self.multipliers, "1 to 8 numbers in 1..64")
        check(1 <= self.blocks <= 16, "model.blocks", self.blocks, "in 1..16")
        ok = len(self.attention) == len(self.multipliers) and all(a in ATTENTIONS for a in self.attention)
        kinds = f"one of {one_of(ATTENTIONS)} for each of the {len(self.multipliers)} levels"
        check(ok, "model.attention", self.attention, kinds)
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        ok = self.groups >= 1 and self.width % self.groups == 0
        check(ok, "model.groups", self.groups, f"a divisor of model.width={self.width}")

    @property
    def stride(self) -> int:
        """What an image's sides must be divisible by."""
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(kw_only=True)
class UNet(Model):
    name: str = "unet"
    heads: int
    head_dim: int
    patch_size: int  # the stem folds patches of this side into channels, the head unfolds them

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.heads <= 64, "model.heads", self.heads, "in 1..64")
        check(1 <= self.head_dim <= 512, "model.head_dim", self.head_dim, "in 1..512")
        check(1 <= self.patch_size <= 64, "model.patch_size", self.patch_size, "in 1..64")
        check(self.width >= 4 and self.width % 2 == 0, "model.width", self.width, "even and at least 4")

    @property
    def stride(self) -> int:
        return self.patch_size * super().stride


@dataclass(kw_only=True)
class DdpmUNet(Model):
    name: str = "ddpm_unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 4 and self.width % 2 == 0, "model.width", self.width, "even and at least 4")
        check("linear" not in self.attention, "model.attention", self.attention, "none or full at each level")


# --- sampler ---------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Sampler(Option):
    """How x_T becomes x_0, in `steps` calls of the network (None: all T timesteps)."""

    steps: int | None
    clip: bool  # the estimate of x0 to [-1, 1] at each step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None:
            check(self.steps >= 1, "sampler.steps", self.steps, "at least 1, or null for all timesteps")

    def check_against(self, schedule: Schedule) -> None:
        """Raise `UserError` where there are more steps than `schedule` has timesteps."""
        if self.steps is not None:
            bounds = f"in 1..{schedule.timesteps}, the timesteps of the schedule"
            check(self.steps <= schedule.timesteps, "sampler.steps", self.steps, bounds)


@dataclass(kw_only=True)
class Ddpm(Sampler):
    name: str = "ddpm"


@dataclass(kw_only=True)
class Ddim(Sampler):
    name: str = "ddim"
    eta: float  # 0: deterministic; 1: as much noise as ddpm

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.eta <= 1, "sampler.eta", self.eta, "in [0, 1]")


# --- all of them ------------------------------------------------------------------------------------

GROUPS: dict[type[Option], list[type[Option]]] = {
    Dataset: [FashionMnist, Cifar10, Mnist, ImageFolder, Digits],
    Schedule: [Linear, Cosine, Quadratic, Sigmoid, Constant],
    Loss: [L1, L2, Huber],
    Model: [UNet, DdpmUNet],
    Sampler: [Ddpm, Ddim],
}
"""Each group's base class and its options."""
