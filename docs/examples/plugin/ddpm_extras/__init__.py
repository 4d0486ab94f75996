"""The options of the plugin. Their implementations need torch and are imported when they are used."""

from dataclasses import dataclass
from typing import ClassVar

from ddpm_cli.api import Dataset, ImageDataset, ImageModel, Metric, Sampler, Schedule, check


@dataclass(kw_only=True)
class Midpoint(Sampler):
    """The midpoint method on the probability flow ODE."""

    implementation: ClassVar[str] = "ddpm_extras.midpoint:midpoint"
    calls_per_step: ClassVar[int] = 2
    name: str = "midpoint"
    last_step: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.last_step in ("euler", "x0"), "sampler.last_step", self.last_step, "euler or x0")

    def check_against(self, schedule: Schedule, dataset: Dataset) -> None:
        super().check_against(schedule, dataset)
        ends = schedule.ends_without_signal
        check(not ends, "schedule", schedule.name, "one whose last timestep has signal for sampler=midpoint")


@dataclass(kw_only=True)
class NpzFile(ImageDataset):
    """Images in an npz file, `root`: the array images (N, H, W, C) uint8, and optionally labels (N,)."""

    implementation: ClassVar[str] = "ddpm_extras.npz_file:load"
    name: str = "npz_file"
    held_out: int  # images of the test split, the last ones in the file

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.held_out >= 0, "dataset.held_out", self.held_out, "0 or more")


@dataclass(kw_only=True)
class Residual(ImageModel):
    """Residual blocks at full resolution."""

    implementation: ClassVar[str] = "ddpm_extras.residual:Residual"
    name: str = "residual"
    blocks: int

    stride: ClassVar[int] = 1  # any size of images

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.blocks <= 100, "model.blocks", self.blocks, "in 1..100")


@dataclass(kw_only=True)
class MeanDistance(Metric):
    """The distance of the mean images."""

    implementation: ClassVar[str] = "ddpm_extras.mean_distance:mean_distance"
    name: str = "mean_distance"
