"""Configuration of the commands other than ddpm-train."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ddpm_cli.config.averages import checked_weights
from ddpm_cli.config.dataset import Dataset, ImageDataset, ImageFolder
from ddpm_cli.config.guidance import GuidanceChanges
from ddpm_cli.config.processes import check_devices, check_threads
from ddpm_cli.config.registry import GROUPS, MAX_SIZE, Option, option_name
from ddpm_cli.config.sampler import Sampler
from ddpm_cli.config.schedule import Schedule
from ddpm_cli.config.train import MIN_SAMPLES, PRECISIONS, VARIANCES
from ddpm_cli.errors import UserError, check, one_of

TASKS = ("generate", "interpolate", "inpaint")
METRICS = ("fid", "kid", "is", "prc", "nll")
FEATURES = ("auto", "inception", "classifier")
EXPORTS = ("safetensors", "diffusers", "onnx", "checkpoint")
IMPORTS = ("diffusers", "shards")


@dataclass(kw_only=True)
class Metric(Option):
    """A metric of samples that a plugin adds to `METRICS`; its name is typed in metrics=[…].

    Its implementation takes samples (N, C, H, W) and reference (M, C, H, W), images in uint8 on the CPU, and a seed.
    It returns a number.
    """

    group: ClassVar[str] = "metric"
    higher_is_better: ClassVar[bool] = False


def plugin_metrics() -> dict[str, Metric]:
    """Return the metrics of plugins by name."""
    return {option_name(kind): kind(name=option_name(kind)) for kind in GROUPS[Metric] if issubclass(kind, Metric)}


def known_metrics() -> tuple[str, ...]:
    """Return the names that metrics=[…] may contain."""
    return (*METRICS, *plugin_metrics())


@dataclass(kw_only=True)
class CheckpointConfig:
    """Keys of all commands that use a checkpoint, which contains the rest of the config."""

    ckpt: str
    batch_size: int
    seed: int
    root: str | None  # of the data, if they were moved after training
    sampler: Sampler | None  # None: that of the milestones of the run; also for variance and guidance_scale
    # Changes of the run's sampler; typed sampler.steps=… without sampler=….
    sampler_changes: dict[str, Any] = field(default_factory=dict)
    variance: str | None
    guidance_scale: float | None
    guidance: GuidanceChanges
    weights: str
    device: str
    devices: Any  # number of devices, each with its own process, or auto
    threads: Any  # number of CPU threads of each process, or auto
    precision: str | None  # None: as the command chooses
    compile: bool | None  # None: on CUDA, for many network calls
    out: str

    def __post_init__(self) -> None:
        check(1 <= self.batch_size <= 10**6, "batch_size", self.batch_size, "in 1..1000000")
        check(0 <= self.seed < 2**63, "seed", self.seed, "in 0..2**63-1")
        if self.variance is not None:
            check(self.variance in VARIANCES, "variance", self.variance, one_of(VARIANCES))
        self.weights = checked_weights("weights", self.weights)
        check_devices(self.devices)
        check_threads(self.threads)
        ok = self.precision is None or self.precision in PRECISIONS
        check(ok, "precision", self.precision, one_of(PRECISIONS))


@dataclass(kw_only=True)
class SampleConfig(CheckpointConfig):
    """Configuration of `ddpm-sample`."""

    n: int | None  # None: the default of the task
    classes: Any  # typed class=…: a number, a name, a list of these, or None for all
    task: str
    a: Any  # for task=interpolate, like the next two: a file, or the number of a test image
    b: Any
    t: int | None
    image: Any  # for task=inpaint, like the next two
    mask: str | None
    resamplings: int | None  # None: 10
    gif: bool
    npz: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.n is None or 1 <= self.n <= 10**7, "n", self.n, "in 1..10000000")
        check(self.task in TASKS, "task", self.task, one_of(TASKS))
        self._check_task()

    def _check_task(self) -> None:
        for key, task in {
            "a": "interpolate",
            "b": "interpolate",
            "t": "interpolate",
            "image": "inpaint",
            "mask": "inpaint",
            "resamplings": "inpaint",
        }.items():
            value = getattr(self, key)
            if self.task == task and value is None and key not in ("t", "resamplings"):
                number = "" if key == "mask" else ", or the number of an image of the test split"
                raise UserError(f"{key}=null: task={task} needs it; name a file{number}")
            if self.task != task and value is not None:
                raise UserError(f"{key}={value}: only with task={task}; leave it out, or choose that task")
        check(self.t is None or self.t >= 0, "t", self.t, "a timestep from 0 up, or null for T/2")
        ok = self.resamplings is None or 1 <= self.resamplings <= 1000
        check(ok, "resamplings", self.resamplings, "in 1..1000, or null for 10")
        if self.task == "generate" and self.root is not None:
            raise UserError(f"root={self.root}: task=generate reads no data; leave it out, or choose another task")


@dataclass(kw_only=True)
class EvaluateConfig(CheckpointConfig):
    """Configuration of `ddpm-evaluate`."""

    samples: str | None  # instead of ckpt: a folder of images, or an npz file
    dataset: Dataset | None  # that samples are compared with; a checkpoint has its own
    metrics: list[str]
    features: str  # auto: inception for colour images, classifier for gray ones
    reference: str | None  # an npz file with the statistics of reference images for fid
    n: int | None  # None: 64 for nll; 2000 samples for the classifier, 10000 for Inception
    split: str

    def __post_init__(self) -> None:
        super().__post_init__()
        known = known_metrics()
        ok = len(self.metrics) > 0 and all(metric in known for metric in self.metrics)
        check(ok, "metrics", self.metrics, f"a list of {one_of(known)}, as in [fid,kid]")
        check(self.features in FEATURES, "features", self.features, one_of(FEATURES))
        if self.reference is not None and ("fid" not in self.metrics or self.features == "classifier"):
            raise UserError(f"reference={self.reference}: only with metrics=[fid] and features=inception")
        least = MIN_SAMPLES if self.distances else 1
        check(self.n is None or self.n >= least, "n", self.n, f"at least {least} for these metrics, or null")
        check(self.split in ("test", "train"), "split", self.split, "test or train")
        one = (self.ckpt == "") != (self.samples is None)
        check(one, "ckpt", self.ckpt, "a run folder or a checkpoint, or samples=… instead, but not both")
        self._check_samples()
        if not self.distances:
            self._check_no_drawing("with metrics=[nll], for which no samples are drawn")

    @property
    def distances(self) -> list[str]:
        """The metrics that need samples."""
        return [metric for metric in dict.fromkeys(self.metrics) if metric != "nll"]

    def _check_samples(self) -> None:
        if self.samples is None:
            if self.dataset is not None:
                raise UserError(f"dataset={self.dataset.name}: a checkpoint has its own; leave it out, or use root=…")
            return
        if "nll" in self.metrics:
            raise UserError("metrics=[nll]: needs a network; give ckpt=… instead of samples=…")
        self._check_no_drawing("on samples=…, which are drawn already")
        check(self.dataset is not None, "dataset", None, "set with samples=…, as in dataset=fashion_mnist")
        check(
            isinstance(self.dataset, ImageDataset),
            "dataset",
            getattr(self.dataset, "name", None),
            "a dataset of images",
        )

    def _check_no_drawing(self, why: str) -> None:
        """Raise `UserError` for a key that says how to draw samples."""
        keys = [key for key in ("sampler", "variance", "guidance_scale") if getattr(self, key) is not None]
        keys += [f"guidance.{key}" for key, value in vars(self.guidance).items() if value is not None]
        keys += [f"sampler.{key}" for key in self.sampler_changes or {}]
        if keys:
            raise UserError(f"{keys[0]}: has no effect {why}; leave it out")


@dataclass(kw_only=True)
class ExportConfig:
    """Configuration of `ddpm-export`."""

    ckpt: str
    format: str
    weights: str
    out: str

    def __post_init__(self) -> None:
        check(self.format in EXPORTS, "format", self.format, one_of(EXPORTS))
        self.weights = checked_weights("weights", self.weights)
        if self.format == "checkpoint" and self.weights != "ema":
            raise UserError(
                f"weights={self.weights}: has no effect with format=checkpoint, which has all of them; leave it out"
            )


@dataclass(kw_only=True)
class ImportConfig:
    """Configuration of `ddpm-import`."""

    path: str
    format: str
    dataset: Dataset  # that the network was trained on
    test_fraction: float | None  # of format=shards, like the next two; None: 0.1
    skip_broken: bool
    follow_links: bool
    out: str

    def __post_init__(self) -> None:
        check(self.format in IMPORTS, "format", self.format, one_of(IMPORTS))
        ok = self.test_fraction is None or 0 <= self.test_fraction < 1
        check(ok, "test_fraction", self.test_fraction, "in [0, 1), or null for 0.1")
        if self.format == "shards":
            if self.dataset.name != "cifar10":  # the default, which has no effect
                raise UserError(f"dataset={self.dataset.name}: has no effect with format=shards; leave it out")
            return
        for key in ("test_fraction", "skip_broken", "follow_links"):
            if getattr(self, key) not in (None, False):
                raise UserError(f"{key}={getattr(self, key)}: only with format=shards; leave it out")

    def image_folder(self) -> ImageFolder:
        """Return `path` as a folder of images, whose files are copied, so that its image size has no effect."""
        return ImageFolder(
            root=self.path,
            image_size=1,
            channels=3,
            flip=False,
            test_fraction=0.1 if self.test_fraction is None else self.test_fraction,
            skip_broken=self.skip_broken,
            follow_links=self.follow_links,
        )


@dataclass(kw_only=True)
class ForwardConfig:
    """Configuration of `ddpm-forward`."""

    image: str | None
    dataset: Dataset | None
    index: int
    image_size: int
    chain: bool  # also draw it noised step by step
    t: list[int]
    show: list[str]
    timesteps: int
    schedules: dict[str, Schedule]
    seed: int
    out: str

    def __post_init__(self) -> None:
        one = (self.image is None) != (self.dataset is None)
        check(one, "image", self.image, "a file, or null if dataset=… is given: give one of the two")
        check(self.index >= 0, "index", self.index, "0 or more")
        check(1 <= self.image_size <= MAX_SIZE, "image_size", self.image_size, f"in 1..{MAX_SIZE}")
        for name, schedule in self.schedules.items():
            check(isinstance(schedule, Schedule), f"schedules.{name}", schedule, "left out; set the keys below it")
        ok = len(self.show) > 0 and all(name in self.schedules for name in self.show)
        check(ok, "show", self.show, f"some of {one_of(self.schedules)}")
        last, shortest = min((schedule.timesteps - 1, name) for name, schedule in self.schedules.items())
        ok = len(self.t) > 0 and all(0 <= t <= last for t in self.t)
        end = f"schedules.{shortest}.timesteps={last + 1}"
        check(ok, "t", self.t, f"timesteps in 0..{last}, for {end}; timesteps=… moves the end of all")
        check(0 <= self.seed < 2**63, "seed", self.seed, "in 0..2**63-1")
