"""The config group `model`: the networks."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ddpm_cli.config.dataset import Dataset
from ddpm_cli.config.registry import MAX_SIZE, Option
from ddpm_cli.errors import UserError, check, one_of

ATTENTIONS = ("none", "linear", "full")
POSITIONS = ("sine", "rotary")
TIME_ACTIVATIONS = ("silu", "gelu")
VARIANTS = ("ddpm", "improved")


@dataclass(kw_only=True)
class Model(Option):
    """A network (x, t, class) -> output."""

    group: ClassVar[str] = "model"
    augmentable: ClassVar[bool] = False  # whether its implementation takes `augmentations`, the number of their labels
    width: int
    dropout: float
    time_scale: float  # t is multiplied by it before its embedding
    self_condition: bool  # the network also sees its last estimate of x0 (Chen et al. 2022)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 4 <= self.width <= MAX_SIZE and self.width % 2 == 0
        check(ok, "model.width", self.width, f"an even number in 4..{MAX_SIZE}")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        check(0 < self.time_scale < math.inf, "model.time_scale", self.time_scale, "a finite number above 0")

    def check_against(self, dataset: Dataset) -> None:
        """Raise `UserError` if the network does not accept the examples of `dataset`."""
        raise NotImplementedError

    def check_augmentation(self, dataset: Dataset) -> None:
        """Raise `UserError` if the examples are augmented and the network does not take their labels."""
        augment = getattr(dataset, "augment", 0.0)
        if augment and not self.augmentable:
            raise UserError(
                f"dataset.augment={augment}: model={self.name} takes no augmentation labels; use model=ddpmpp or dit_s"
            )


@dataclass(kw_only=True)
class ImageModel(Model):
    """A network for images with sides divisible by `stride`; `remedy` says what reduces it."""

    remedy: ClassVar[str] = ""

    @property
    def stride(self) -> int:
        raise NotImplementedError

    def check_against(self, dataset: Dataset) -> None:
        if len(dataset.shape) != 3:
            raise UserError(f"dataset={dataset.name}: has points, and this model is for images; use model=mlp")
        sides = dataset.shape[1:]
        if any(side % self.stride for side in sides):
            below = {side // self.stride * self.stride for side in sides}
            near = sorted(below.union(side + self.stride for side in below) - {0})
            size = list(sides) if len(set(sides)) > 1 else sides[0]
            raise UserError(
                f"dataset.image_size={size}: must be divisible by {self.stride} for this model: "
                f"{one_of(map(str, near))} would do{self.remedy}"
            )


@dataclass(kw_only=True)
class LevelledUNet(ImageModel):
    """A U-Net: one level per entry of `multipliers`, each half the resolution of the one above."""

    remedy: ClassVar[str] = ", or fewer model.multipliers"
    multipliers: list[int]
    blocks: int  # residual blocks a level
    attention: list[str]  # a kind per level
    gradient_checkpointing: bool = False  # a default, for options that were written before this key existed

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 1 <= len(self.multipliers) <= 8 and all(1 <= m <= 64 for m in self.multipliers)
        check(ok, "model.multipliers", self.multipliers, "1 to 8 numbers in 1..64")
        check(1 <= self.blocks <= 16, "model.blocks", self.blocks, "in 1..16")
        ok = len(self.attention) == len(self.multipliers) and all(a in ATTENTIONS for a in self.attention)
        kinds = f"one of {one_of(ATTENTIONS)} for each of the {len(self.multipliers)} levels of model.multipliers"
        check(ok, "model.attention", self.attention, kinds)

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(kw_only=True)
class GroupedUNet(LevelledUNet):
    """A U-Net with a choice of the groups of its norms and the heads of its attention."""

    groups: int  # of the group norms
    heads: int  # of the attention

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.groups >= 1 and self.width % self.groups == 0
        check(ok, "model.groups", self.groups, f"a divisor of model.width={self.width}")
        check(1 <= self.heads <= 64, "model.heads", self.heads, "in 1..64")


@dataclass(kw_only=True)
class UNetOptions(GroupedUNet):
    """The U-Net of "The Annotated Diffusion Model"."""

    name: str = "unet"
    head_dim: int
    patch_size: int  # the stem folds patches of this side into channels, the head unfolds them
    time_activation: str = "silu"  # of the embedding of t; a default, as that of gradient_checkpointing

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.head_dim <= 512, "model.head_dim", self.head_dim, "in 1..512")
        check(1 <= self.patch_size <= 64, "model.patch_size", self.patch_size, "in 1..64")
        known = self.time_activation in TIME_ACTIVATIONS
        check(known, "model.time_activation", self.time_activation, one_of(TIME_ACTIVATIONS))

    @property
    def stride(self) -> int:
        return self.patch_size * super().stride


@dataclass(kw_only=True)
class DdpmUNetOptions(GroupedUNet):
    """The U-Net of Ho et al. 2020 and of Nichol & Dhariwal 2021."""

    name: str = "ddpm_unet"
    scale_shift: bool  # the embedding scales and shifts the second norm, rather than being added before it
    variant: str = "ddpm"  # the code whose details are used; a default, as that of gradient_checkpointing

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.variant in VARIANTS, "model.variant", self.variant, one_of(VARIANTS))
        check("linear" not in self.attention, "model.attention", self.attention, "none or full at each level")
        ok = self.width % self.heads == 0
        check(ok, "model.heads", self.heads, f"a divisor of model.width={self.width}")


@dataclass(kw_only=True)
class DdpmPpOptions(LevelledUNet):
    """DDPM++, the U-Net of Song et al. 2021 as in the code of Karras et al. 2022."""

    name: str = "ddpmpp"
    augmentable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check("linear" not in self.attention, "model.attention", self.attention, "none or full at each level")


@dataclass(kw_only=True)
class DitOptions(ImageModel):
    """The diffusion transformer of Peebles & Xie 2023."""

    name: str = "dit"
    augmentable: ClassVar[bool] = True
    remedy: ClassVar[str] = ", or another model.patch_size"
    depth: int  # transformer blocks
    heads: int  # of the attention
    patch_size: int  # side of the square patches that are the tokens
    positions: str  # sine: added to the tokens; rotary: queries and keys are rotated
    qk_norm: bool  # RMS norm of the queries and keys of each head
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.depth <= 128, "model.depth", self.depth, "in 1..128")
        ok = self.heads >= 1 and self.width % self.heads == 0
        check(ok, "model.heads", self.heads, f"a divisor of model.width={self.width}")
        check(1 <= self.patch_size <= 64, "model.patch_size", self.patch_size, "in 1..64")
        check(self.positions in POSITIONS, "model.positions", self.positions, one_of(POSITIONS))
        if self.positions == "sine":
            check(self.width % 4 == 0, "model.width", self.width, "divisible by 4 for model.positions=sine")
        else:
            ok, allowed = self.width // self.heads % 4 == 0, "such that model.width / model.heads is divisible by 4"
            check(ok, "model.heads", self.heads, f"{allowed} for model.positions=rotary")

    @property
    def stride(self) -> int:
        return self.patch_size


@dataclass(kw_only=True)
class ConvUNetOptions(ImageModel):
    """Convolutions and batch norms: three levels of `width`, twice and four times as many channels."""

    name: str = "conv_unet"
    time_dim: int  # of the sinusoidal embedding of t

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 4 <= self.time_dim <= MAX_SIZE and self.time_dim % 2 == 0
        check(ok, "model.time_dim", self.time_dim, f"an even number in 4..{MAX_SIZE}")

    @property
    def stride(self) -> int:
        return 4

    def check_against(self, dataset: Dataset) -> None:
        super().check_against(dataset)
        ok = all(side > self.stride for side in dataset.shape[1:])
        check(ok, "dataset.image_size", dataset.shape[1], "at least 8 for this model, whose norms need several pixels")


@dataclass(kw_only=True)
class MlpOptions(Model):
    """A network for points: `blocks` residual blocks of fully connected layers."""

    name: str = "mlp"
    blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.blocks <= 64, "model.blocks", self.blocks, "in 1..64")

    def check_against(self, dataset: Dataset) -> None:
        if len(dataset.shape) != 1:
            raise UserError(f"model=mlp: is for points, dataset={dataset.name} has images; use model=small")
