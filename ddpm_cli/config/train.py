"""Configuration of ddpm-train."""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddpm_cli.config.averages import check_lengths, checked_weights
from ddpm_cli.config.dataset import Dataset
from ddpm_cli.config.guidance import GuidanceOptions, check_guidance
from ddpm_cli.config.model import Model
from ddpm_cli.config.objective import (
    LEAST_SIGMA_DATA,
    Conditioning,
    Hybrid,
    Loss,
    TimestepSampler,
    Unweighted,
    Vlb,
    Weighting,
)
from ddpm_cli.config.processes import Distributed, check_devices, check_threads
from ddpm_cli.config.sampler import Sampler
from ddpm_cli.config.schedule import BetaSchedule, Schedule
from ddpm_cli.errors import UserError, check, one_of

PREDICTIONS = ("eps", "x0", "v", "edm", "flow")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
MEASURED = ("fd_classifier", "fid")
"""Metrics of samples that can be computed while a run trains."""
REPORTS = ("val_loss", "nll", *MEASURED)
MIN_SAMPLES = 10
"""Fewest samples that a distance can be computed from."""
PRECISIONS = ("auto", "fp32", "fp32_strict", "bf16", "fp16")
OPTIMIZERS = ("adam", "adamw", "muon")
LOGGERS = ("csv", "tensorboard", "wandb")


class Interval(NamedTuple):
    """A number of steps or of epochs."""

    length: float
    in_epochs: bool


def interval_of(key: str, every: object) -> Interval:
    """Return the interval in `every`: a number of steps, or of epochs as in 1epoch, 0.5epochs. Raise `UserError`."""
    epochs = re.fullmatch(r"(\d{1,9}|\d{0,9}\.\d{1,9}) ?epochs?", every) if isinstance(every, str) else None
    length = float(epochs[1]) if epochs else float(every) if type(every) is int else 0.0
    check(0 < length <= 10**15, key, every, "a number of steps from 1 up, or of epochs, as in 1epoch")
    return Interval(length, epochs is not None)


@dataclass(kw_only=True)
class Train:
    """Training options; a step uses `batch_size` images in `accumulate` equal parts."""

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
    ema_start: int  # before this step the average is a copy of the network
    ema_lengths: list[float] | None  # relative lengths of further averages, see config/averages.py
    precision: str
    deterministic: bool  # on CUDA; a CPU always is
    seed: int
    log_every: int
    milestone_every: Any  # steps, or epochs as in 1epoch and 0.5epochs
    samples: int  # in a milestone's picture
    max_bad_steps: int  # in a row, whose loss or gradient is not finite
    on_disk_full: str
    report: str | None  # the metric reported to a sweeper; None: the last loss
    report_n: int | None  # of how many examples or samples
    stop_when: str | None  # the metric whose lack of improvement ends the run
    patience: int  # measurements without improvement that end it

    def __post_init__(self) -> None:
        check((self.steps is None) != (self.epochs is None), "train.steps", self.steps, self._length_hint())
        if self.steps is not None:
            check(1 <= self.steps <= 10**9, "train.steps", self.steps, "in 1..1000000000")
        if self.epochs is not None:
            check(0 < self.epochs <= 10**6, "train.epochs", self.epochs, "in (0, 1000000]")
        check(1 <= self.batch_size <= 10**6, "train.batch_size", self.batch_size, "in 1..1000000")
        ok = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
        check(ok, "train.accumulate", self.accumulate, f"a divisor of train.batch_size={self.batch_size}")
        check(self.optimizer in OPTIMIZERS, "train.optimizer", self.optimizer, one_of(OPTIMIZERS))
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
        check(0 <= self.ema_start <= 10**9, "train.ema_start", self.ema_start, "0 or more")
        check_lengths(self.ema_lengths)
        check(self.precision in PRECISIONS, "train.precision", self.precision, one_of(PRECISIONS))
        check(0 <= self.seed < 2**63, "train.seed", self.seed, "in 0..2**63-1")
        check(self.log_every >= 1, "train.log_every", self.log_every, "at least 1")
        interval_of("train.milestone_every", self.milestone_every)
        ok = 1 <= self.max_bad_steps <= 10_000
        check(ok, "train.max_bad_steps", self.max_bad_steps, "in 1..10000")
        check(self.on_disk_full in ("stop", "continue"), "train.on_disk_full", self.on_disk_full, "stop or continue")
        check(1 <= self.samples <= 10_000, "train.samples", self.samples, "in 1..10000")
        ok = self.report is None or self.report in REPORTS
        check(ok, "train.report", self.report, f"{one_of(REPORTS)}, or null for the last loss")
        least = 1 if self.report in (None, "val_loss", "nll") else MIN_SAMPLES
        ok = self.report_n is None or self.report_n >= least
        check(ok, "train.report_n", self.report_n, f"at least {least}, or null")
        ok = self.stop_when is None or self.stop_when in MEASURED
        check(ok, "train.stop_when", self.stop_when, f"{one_of(MEASURED)}, or null")
        check(1 <= self.patience <= 10**6, "train.patience", self.patience, "in 1..1000000")

    @property
    def milestone_interval(self) -> Interval:
        """The interval between milestones."""
        return interval_of("train.milestone_every", self.milestone_every)

    def _length_hint(self) -> str:
        if self.steps is None:
            return "a number of steps; or give train.epochs"
        return f"null where train.epochs={self.epochs} is given: give one of the two, the other null"


@dataclass(kw_only=True)
class Checkpointing:
    """The checkpoints of a run and the snapshots of its averages that are kept."""

    keep_last: int | None  # None: all
    keep_every: Any  # steps or epochs, or None
    keep_averages: int | None  # snapshots of train.ema_lengths; None: all
    sharded: bool

    def __post_init__(self) -> None:
        ok = self.keep_last is None or 1 <= self.keep_last <= 10**9
        check(ok, "checkpoint.keep_last", self.keep_last, "at least 1, or null for all")
        ok = self.keep_averages is None or 2 <= self.keep_averages <= 10_000
        check(ok, "checkpoint.keep_averages", self.keep_averages, "in 2..10000, or null for all")
        if self.keep_every is not None:
            interval_of("checkpoint.keep_every", self.keep_every)

    @property
    def keep_interval(self) -> Interval | None:
        """The intervals whose first checkpoint is kept, or None."""
        return None if self.keep_every is None else interval_of("checkpoint.keep_every", self.keep_every)


@dataclass(kw_only=True)
class MilestoneEvaluation:
    """Measurements of samples while a run trains."""

    every: int | None  # milestones from one to the next; None: none
    metric: str
    n: int  # samples

    def __post_init__(self) -> None:
        ok = self.every is None or 1 <= self.every <= 10**6
        check(ok, "evaluate.every", self.every, "a number of milestones from 1 up, or null for none")
        check(self.metric in MEASURED, "evaluate.metric", self.metric, one_of(MEASURED))
        check(MIN_SAMPLES <= self.n <= 10**7, "evaluate.n", self.n, f"in {MIN_SAMPLES}..10000000")


@dataclass(kw_only=True)
class Sweep:
    """Options of a sweep."""

    resume: str | None  # the folder of a stopped sweep, whose missing and unfinished jobs are run
    prune: str | None  # how bad runs are ended early
    reduction_factor: int
    first_rung: int  # in milestones

    def __post_init__(self) -> None:
        check(self.prune in (None, "asha"), "sweep.prune", self.prune, "asha, or null for no pruning")
        ok = 2 <= self.reduction_factor <= 100
        check(ok, "sweep.reduction_factor", self.reduction_factor, "in 2..100")
        check(1 <= self.first_rung <= 10**9, "sweep.first_rung", self.first_rung, "in 1..1000000000")


@dataclass(kw_only=True)
class TrainConfig:
    """Configuration of `ddpm-train`; every checkpoint contains it as a plain dict."""

    dataset: Dataset
    schedule: Schedule
    loss: Loss
    weighting: Weighting
    timestep_sampler: TimestepSampler
    conditioning: Conditioning
    model: Model
    prediction: str
    sigma_data: Any  # standard deviation of the data, for prediction=edm, weighting=edm and loss.weight=edm, or auto
    variance: str  # of the reverse process
    sampler: Sampler  # of the milestones' pictures, as guidance_scale is
    guidance_scale: float
    guidance: GuidanceOptions
    train: Train
    evaluate: MilestoneEvaluation
    checkpoint: Checkpointing
    device: str
    devices: Any  # number of devices, each with its own process, or auto
    threads: Any  # number of CPU threads of each process, or auto
    distributed: Distributed
    compile: bool | None  # None: on CUDA, in long runs
    logger: Any  # a name or a list of names; csv is always on
    init: str | None  # a checkpoint of another run, whose weights this one starts from
    init_weights: str
    resume: str | None
    resume_data_changed: bool  # resume although the data have changed
    sweep: Sweep
    out: str

    def __post_init__(self) -> None:
        check(self.prediction in PREDICTIONS, "prediction", self.prediction, one_of(PREDICTIONS))
        number = type(self.sigma_data) in (int, float)
        ok = self.sigma_data == "auto" or (number and LEAST_SIGMA_DATA <= self.sigma_data <= 100)
        check(ok, "sigma_data", self.sigma_data, f"in [{LEAST_SIGMA_DATA}, 100], or auto")
        check(self.variance in VARIANCES, "variance", self.variance, one_of(VARIANCES))
        self.model.check_against(self.dataset)
        self.model.check_augmentation(self.dataset)
        self.sampler.check_against(self.schedule, self.dataset)
        self.sampler = self.sampler.for_data(self.dataset)
        check_guidance(self.guidance_scale, self.conditioning)
        self.guidance.check_has_effect(self.guidance_scale)
        check_devices(self.devices)
        check_threads(self.threads)
        self.init_weights = checked_weights("init_weights", self.init_weights)
        if self.distributed.strategy == "fsdp" and self.train.precision == "fp16":
            raise UserError("train.precision=fp16: not with distributed.strategy=fsdp; use bf16 or fp32")
        if self.checkpoint.sharded and self.distributed.strategy != "fsdp":
            raise UserError(
                f"checkpoint.sharded=true: not with distributed.strategy={self.distributed.strategy}; use fsdp"
            )
        ok = all(name in LOGGERS for name in self._logger_words())
        check(ok, "logger", self.logger, f"{one_of(LOGGERS)}, or a list of some, as in [tensorboard,wandb]")
        self._check_objective()
        stop = self.train.stop_when
        if stop is not None and (self.evaluate.every is None or self.evaluate.metric != stop):
            raise UserError(f"train.stop_when={stop}: is not measured; add evaluate.every=1 evaluate.metric={stop}")

    @property
    def loggers(self) -> list[str]:
        """The loggers besides csv, which is always on."""
        return [name for name in dict.fromkeys(self._logger_words()) if name != "csv"]

    def _logger_words(self) -> list[Any]:
        return self.logger if isinstance(self.logger, list) else [self.logger]

    def _check_objective(self) -> None:
        learned, variational = self.variance == "learned_range", isinstance(self.loss, Hybrid | Vlb)
        if learned and not variational:
            raise UserError(
                f"variance=learned_range: loss={self.loss.name} teaches the network no variance; use loss=hybrid or vlb"
            )
        if isinstance(self.loss, Hybrid) and not learned:
            raise UserError(f"loss=hybrid: needs variance=learned_range, not {self.variance}; without one, use loss=l2")
        if isinstance(self.loss, Vlb) and not isinstance(self.weighting, Unweighted):
            raise UserError(
                f"weighting={self.weighting.name}: must be none with loss=vlb: a weighted bound is no bound"
            )
        self.loss.check_against(self.prediction, self.schedule, self.weighting)
        self._check_path()

    def _check_path(self) -> None:
        schedule, prediction = self.schedule, self.prediction
        ending = (
            "schedule.zero_terminal_snr=true" if isinstance(schedule, BetaSchedule) else f"schedule={schedule.name}"
        )
        if prediction not in schedule.predictions:
            raise UserError(
                f"prediction={prediction}: not with schedule={schedule.name}, which needs "
                f"prediction={one_of(schedule.predictions)}"
                + ("; prediction=flow needs schedule=flow" if prediction == "flow" else "")
            )
        if schedule.ends_without_signal and self.weighting.vanishes:
            raise UserError(
                f"weighting={self.weighting.name}: must be none or edm with {ending}, whose last "
                "timestep, where sampling starts, others weigh with 0"
            )
        if schedule.ends_without_signal and prediction in ("eps", "edm"):
            why = "eps does not determine x0" if prediction == "eps" else "its noise level is infinite"
            raise UserError(
                f"{ending}: not with prediction={prediction}, because at the last timestep x_t is pure noise, and "
                f"{why}; use prediction=v"
            )
