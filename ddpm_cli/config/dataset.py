"""The config group `dataset`: images, or points in the plane."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ddpm_cli.config.registry import MAX_SIZE, Option
from ddpm_cli.errors import check

MIN_AUGMENTED = 4
"""Smallest side of images that are augmented, from which on their reflections fill what the filter needs."""


@dataclass(kw_only=True)
class Dataset(Option):
    """A dataset. `shape` is that of one example, channels first."""

    group: ClassVar[str] = "dataset"
    bounded: ClassVar[bool] = True  # to [-1, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError


@dataclass(kw_only=True)
class ImageDataset(Dataset):
    """Images scaled to [-1, 1]. `image_size` is a side, or [height, width]; other sizes are resized to it."""

    root: str | None  # folder to look in first; None: the usual places
    image_size: Any
    channels: int  # 1 gray, 3 RGB; the network takes it from here
    flip: bool  # mirror every other image, at random, in training
    augment: float = 0.0  # probability of each geometric augmentation; a default, for options older than this key

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.channels in (1, 3), "dataset.channels", self.channels, "1 (gray) or 3 (colour)")
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size]
        ok = len(sides) in (1, 2) and all(type(side) is int and 1 <= side <= MAX_SIZE for side in sides)
        check(ok, "dataset.image_size", self.image_size, f"a side in 1..{MAX_SIZE} pixels, or [height,width]")
        check(0 <= self.augment <= 1, "dataset.augment", self.augment, "a probability in [0, 1]")
        ok = self.augment == 0 or min(self.shape[1:]) >= MIN_AUGMENTED
        check(
            ok, "dataset.image_size", self.image_size, f"at least {MIN_AUGMENTED} with dataset.augment={self.augment}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image: (channels, height, width)."""
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size]
        return self.channels, sides[0], sides[-1]


@dataclass(kw_only=True)
class FashionMnist(ImageDataset):
    name: str = "fashion_mnist"


@dataclass(kw_only=True)
class Cifar10(ImageDataset):
    name: str = "cifar10"


@dataclass(kw_only=True)
class Mnist(ImageDataset):
    name: str = "mnist"


@dataclass(kw_only=True)
class Digits(ImageDataset):
    name: str = "digits"


@dataclass(kw_only=True)
class Emoji(ImageDataset):
    """Emoji drawn from a font with bitmaps of 109 points."""

    name: str = "emoji"
    font: str | None  # None: where Debian's package puts it; also for the next
    list: str | None  # of Unicode: emoji-test.txt

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.root is None, "dataset.root", self.root, "null for emoji; use dataset.font and dataset.list")


@dataclass(kw_only=True)
class UserImages(ImageDataset):
    """Images of the user, which are read from `root` only. `no_labels` says where their labels would come from."""

    kind: ClassVar[str] = "a folder of images: dataset.root=/pictures"
    no_labels: ClassVar[str] = "the sub-folders directly below dataset.root are the classes"

    def check_root(self) -> None:
        """Raise `UserError` if root is null. (The configs in checkpoints have no root.)"""
        check(self.root is not None, "dataset.root", None, self.kind)


@dataclass(kw_only=True)
class DecodedImages(UserImages):
    """Images of the user that are decoded once into a table."""

    test_fraction: float  # share of the images held out if the root has no splits
    skip_broken: bool  # skip images that cannot be decoded
    follow_links: bool  # also follow links that lead out of the root

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.test_fraction < 1, "dataset.test_fraction", self.test_fraction, "in [0, 1)")


@dataclass(kw_only=True)
class ImageFolder(DecodedImages):
    name: str = "image_folder"


@dataclass(kw_only=True)
class Parquet(DecodedImages):
    """Images and labels in Parquet files, as Hugging Face stores data sets."""

    kind: ClassVar[str] = "a Parquet file or a folder of some: dataset.root=/data/train.parquet"
    no_labels: ClassVar[str] = "name their column by dataset.label_column"
    name: str = "parquet"
    image_column: str
    label_column: str | None  # None: no labels


@dataclass(kw_only=True)
class Shards(UserImages):
    """Images in tar files with an index, which are decoded while training."""

    kind: ClassVar[str] = "a folder that ddpm-import format=shards has written: dataset.root=/shards"
    no_labels: ClassVar[str] = "ddpm-import takes them from the sub-folders directly below path=…"
    name: str = "shards"


@dataclass(kw_only=True)
class SwissRoll(Dataset):
    """Points (x, y) on a spiral, within about 1.5 of the origin."""

    bounded: ClassVar[bool] = False
    name: str = "swiss_roll"
    points: int
    noise: float  # standard deviation off the spiral, whose arms are 6.3 apart

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.points <= 10**8, "dataset.points", self.points, "in 1..100000000")
        check(0 <= self.noise <= 100, "dataset.noise", self.noise, "in [0, 100]")

    @property
    def shape(self) -> tuple[int]:
        """Shape of a point: (2,)."""
        return (2,)
