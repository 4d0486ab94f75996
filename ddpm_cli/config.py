"""What each command is told, as typed dataclasses with cross-checks, and how a checkpoint's config is read.

As in options.py, the values stand in configs/*.yaml and there is no torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dacite

from ddpm_cli.errors import UserError, check, one_of
from ddpm_cli.options import GROUPS, MAX_SIZE, Dataset, Loss, Model, Option, Sampler, Schedule, option_name

PREDICTIONS = ("eps", "x0", "v")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(kw_only=True)
class Train:
    """How a network is trained; `batch_size` images make a step, in `accumulate` equal parts."""

    steps: int | None
    epochs: float | None
    batch_size: int
    accumulate: int
    optimizer: str
    lr: float
    betas: list[float]
    weight_decay: float
    warmup_steps: int
    lr_decay: str
    grad_clip: float | None
    ema_decay: float
    ema_warmup: bool
    precision: str
    seed: int
    log_every: int
    milestone_every: int
    samples: int  # images in a milestone's grid

    def __post_init__(self) -> None:
        check((self.steps is None) != (self.epochs is None), "train.steps", self.steps, self._length_hint())
        if self.steps is not None:
            check(1 <= self.steps <= 10**9, "train.steps", self.steps, "in 1..1000000000")
        if self.epochs is not None:
            check(0 < self.epochs <= 10**6, "train.epochs", self.epochs, "in (0, 1000000]")
        check(1 <= self.batch_size <= 10**6, "train.batch_size", self.batch_size, "in 1..1000000")
        ok = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
        check(ok, "train.accumulate", self.accumulate, f"a divisor of train.batch_size={self.batch_size}")
        check(self.optimizer in ("adam", "adamw"), "train.optimizer", self.optimizer, "adam or adamw")
        check(0 < self.lr <= 10, "train.lr", self.lr, "in (0, 10]")
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(ok, "train.betas", self.betas, "two numbers in [0, 1)")
        check(0 <= self.weight_decay <= 10, "train.weight_decay", self.weight_decay, "in [0, 10]")
        check(0 <= self.warmup_steps <= 10**9, "train.warmup_steps", self.warmup_steps, "0 or more")
        check(self.lr_decay in ("constant", "cosine"), "train.lr_decay", self.lr_decay, "constant or cosine")
        if self.grad_clip is not None:
            ok = 0 < self.grad_clip < math.inf
            check(ok, "train.grad_clip", self.grad_clip, "a finite norm above 0, or null for no clipping")
        check(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "in [0, 1)")
        check(self.precision in PRECISIONS, "train.precision", self.precision, one_of(PRECISIONS))
        check(0 <= self.seed < 2**63, "train.seed", self.seed, "in 0..2**63-1")
        check(self.log_every >= 1, "train.log_every", self.log_every, "at least 1")
        check(self.milestone_every >= 1, "train.milestone_every", self.milestone_every, "at least 1")
        check(1 <= self.samples <= 10_000, "train.samples", self.samples, "in 1..10000")

    def _length_hint(self) -> str:
        if self.steps is None:
            return "a number of steps; or give train.epochs"
        return f"null where train.epochs={self.epochs} is given: give one of the two, the other null"


@dataclass(kw_only=True)
class TrainConfig:
    """All that `ddpm-train` is told; it stands in each checkpoint as a plain dict."""

    dataset: Dataset
    schedule: Schedule
    loss: Loss
    prediction: str
    model: Model
    sampler: Sampler  # of the milestones' grids
    train: Train
    device: str
    compile: bool | None  # None: on CUDA only
    resume: str | None
    out: str

    def __post_init__(self) -> None:
        check(self.prediction in PREDICTIONS, "prediction", self.prediction, one_of(PREDICTIONS))
        self.sampler.check_against(self.schedule)
        stride = self.model.stride
        sides = self.dataset.shape[1:]
        if any(side % stride for side in sides):
            below = {side // stride * stride for side in sides}
            near = sorted(below.union(side + stride for side in below) - {0})
            raise UserError(
                f"dataset.image_size={self.dataset.image_size}: must divide by {stride} for this model: "
                f"{one_of(map(str, near))} would do, or fewer model.multipliers"
            )


@dataclass(kw_only=True)
class SampleConfig:
    """All that `ddpm-sample` is told; the rest comes from the checkpoint."""

    ckpt: str
    n: int
    batch_size: int
    seed: int
    weights: str
    sampler: Sampler | None  # None: the one that drew the run's milestones
    device: str
    precision: str
    gif: bool
    npz: bool
    out: str

    def __post_init__(self) -> None:
        check(1 <= self.n <= 10**7, "n", self.n, "in 1..10000000")
        check(1 <= self.batch_size <= 10**6, "batch_size", self.batch_size, "in 1..1000000")
        check(0 <= self.seed < 2**63, "seed", self.seed, "in 0..2**63-1")
        check(self.weights in ("ema", "model"), "weights", self.weights, "ema or model")
        check(self.precision in PRECISIONS, "precision", self.precision, one_of(PRECISIONS))


@dataclass(kw_only=True)
class ForwardConfig:
    """All that `ddpm-forward` is told."""

    image: str | None
    dataset: Dataset | None
    index: int
    image_size: int
    t: list[int]
    show: list[str]
    timesteps: int
    schedules: dict[str, Schedule]
    seed: int
    out: str

    def __post_init__(self) -> None:
        one = (self.image is None) != (self.dataset is None)
        check(one, "image", self.image, "a file, or null where dataset=… is given: give one of the two")
        check(self.index >= 0, "index", self.index, "0 or more")
        check(1 <= self.image_size <= MAX_SIZE, "image_size", self.image_size, f"in 1..{MAX_SIZE}")
        ok = len(self.show) > 0 and all(name in self.schedules for name in self.show)
        check(ok, "show", self.show, f"some of {one_of(self.schedules)}")
        last = min(schedule.timesteps for schedule in self.schedules.values()) - 1
        ok = len(self.t) > 0 and all(0 <= t <= last for t in self.t)
        check(ok, "t", self.t, f"timesteps in 0..{last}; timesteps={last + 1} moves the end")
        check(0 <= self.seed < 2**63, "seed", self.seed, "in 0..2**63-1")


def train_config(data: Mapping[str, Any]) -> TrainConfig:
    """The `TrainConfig` that `dataclasses.asdict` made `data` of, as a checkpoint holds it.

    Raises `UserError` for a missing or unknown key, a wrong type or a value out of range.
    """
    hooks = {base: _option_reader(base, options) for base, options in GROUPS.items()}
    try:
        return dacite.from_dict(TrainConfig, data, dacite.Config(strict=True, type_hooks=hooks))
    except (dacite.DaciteError, TypeError, AttributeError) as error:
        raise UserError(f"config: {' '.join(str(error).split())}") from error


def _option_reader(base: type[Option], options: list[type[Option]]) -> Any:
    by_name = {option_name(option): option for option in options}

    def read(data: Mapping[str, Any]) -> Option:
        name = str(data.get("name"))
        check(name in by_name, f"{base.__name__.lower()}.name", name, one_of(by_name))
        return dacite.from_dict(by_name[name], data, dacite.Config(strict=True))

    return read
