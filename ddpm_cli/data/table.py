"""A dataset: its examples, their fingerprint, and batches that are a pure function of the step."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.data.augmentation import augment
from ddpm_cli.distributed import collectives
from ddpm_cli.errors import UserError, first_of
from ddpm_cli.files import write

SHARE_OF_MEMORY = 0.25
"""Share of the free memory of the training device that a table may take there."""
STD_EXAMPLES = 2048
"""Number of examples that the standard deviation of the data is estimated from."""
FINGERPRINT_CHUNK = 2**24
"""Number of bytes that are hashed at once."""


@dataclass(frozen=True)
class Examples:
    """All examples of a split.

    values: images (N, C, H, W) uint8 or points (N, D) float32. labels: class indices (N,) int64, or None. classes: the
    names of the classes; empty if they have none. source: the folder that they were read from; empty if none. counts:
    the numbers of files in its splits, in words; empty for datasets with fixed splits. fingerprint: what `fingerprint`
    returned for them before; empty if it is to be computed. held_out: of a train split, the classes of which only the
    test split has images.

    The classes of the train split number both splits. Other classes of the test split follow after them.
    """

    values: Tensor
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    source: str = ""
    counts: str = ""
    fingerprint: str = ""
    held_out: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class StreamedExamples:
    """The images of a split that does not fit in memory; each is read and decoded when it is needed.

    Attributes:
        count: number of images.
        read: returns the image at an index as (C, H, W) uint8. Several threads may call it. Raises `Failure` if the
            image is damaged.
        fingerprint: a hash of the index, see `fingerprint`.
        labels, classes, source, counts, held_out: see `Examples`.
    """

    count: int
    read: Callable[[int], np.ndarray]
    fingerprint: str
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    source: str = ""
    counts: str = ""
    held_out: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count


AnyExamples = TypeVar("AnyExamples", bound=Examples | StreamedExamples)


def numbered_by(names: list[str], examples: AnyExamples, split: str, whose: str) -> AnyExamples:
    """Return the examples with labels that are indices into `names`, the classes that a network knows.

    Args:
        split: says which examples these are, for messages.
        whose: says whose classes `names` are, for messages.

    Raise `UserError` if the examples have no labels, or if some are of a class that is not in `names`.
    """
    known = f"and {whose} {first_of(names)}; use data of these classes"
    if examples.labels is None:
        raise UserError(f"{split} has no labels, {known}")
    if examples.classes == names:
        return examples
    number = {name: i for i, name in enumerate(names)}
    present = [examples.classes[label] for label in examples.labels.unique().tolist()]
    if unknown := [name for name in present if name not in number]:
        raise UserError(f"{split} has images of {first_of(unknown)}, {known}")
    numbers = torch.tensor([number.get(name, -1) for name in examples.classes])
    relabelled = replace(examples, labels=numbers[examples.labels], classes=names)
    return replace(relabelled, fingerprint="") if isinstance(relabelled, Examples) else relabelled


def chosen(count: int, n: int) -> Tensor:
    """Return the indices of n of `count` examples, or of all, chosen at random but always in the same way.

    Examples are often sorted by class, so the first n would be of a few classes only.
    """
    return torch.randperm(count, generator=rng.generator("reference"))[:n]


def to_float(values: Tensor) -> Tensor:
    """Scale uint8 images of any shape to [-1, 1] as float32. Return points unchanged."""
    return values.float().div_(127.5).sub_(1) if values.dtype == torch.uint8 else values


def fingerprint(examples: Examples | StreamedExamples) -> str:
    """Return a SHA-256 in hexadecimal that detects changed data on resume.

    It is that of all values, labels and class names, or of the index of images that are streamed.
    """
    if isinstance(examples, StreamedExamples) or examples.fingerprint:
        return examples.fingerprint
    digest = hashlib.sha256(repr((tuple(examples.values.shape), examples.values.dtype, examples.classes)).encode())
    size = math.prod(examples.values.shape[1:]) * examples.values.element_size()
    for part in examples.values.split(max(1, FINGERPRINT_CHUNK // max(1, size))):
        digest.update(np.ascontiguousarray(part.numpy()).data)
    if examples.labels is not None:
        digest.update(examples.labels.numpy().tobytes())
    return digest.hexdigest()


def with_fingerprint(examples: Examples, stem: Path) -> Examples:
    """Return the examples with their fingerprint, which is computed once and kept beside their decoded images.

    stem: the path of the decoded images without its ending.
    """
    about = hashlib.sha256(repr(examples.classes).encode())
    if examples.labels is not None:
        about.update(examples.labels.numpy().data)
    kept = stem.with_suffix(f".{about.hexdigest()[:16]}.sha256")
    if not kept.is_file():
        write(kept, fingerprint(examples).encode())
    return replace(examples, fingerprint=kept.read_text())


class ExampleBatch(NamedTuple):
    """A batch of examples.

    x0: (B, C, ...) float32. y: class indices (B,) int64, or None for data without labels. augmentation: the labels
    (B, 9) of the augmentation, see `augment`; None without augmentation.
    """

    x0: Tensor
    y: Tensor | None
    augmentation: Tensor | None = None


class Batches(ABC):
    """Training batches of `examples`, without worker processes.

    The epochs form an endless sequence of examples, each shuffled in a different order. Step s uses the examples
    s * batch_size to (s + 1) * batch_size - 1 of this sequence. Therefore each example is used once per epoch, even if
    the batch size does not divide the number of examples, and a batch depends only on (seed, step). An offset moves the
    place in the sequence, for a run whose first steps had another batch size. With several processes, each receives a
    part of the batch. With `flip`, images are mirrored with probability 1/2.

    Args:
        augment: the probability of each augmentation; 0 for none. If it is not 0, `flip` is one of them.
        device: the training device.
        home: the device of the examples and their labels.
    """

    def __init__(
        self,
        examples: Examples | StreamedExamples,
        flip: bool,
        seed: int,
        device: torch.device,
        home: torch.device,
        augment: float = 0.0,
    ) -> None:
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" and home != device else None
        self.labels = None if examples.labels is None else examples.labels.to(home)
        self.classes = examples.classes
        self.source, self.counts = examples.source, examples.counts
        self.flip, self.augment = flip, augment
        self.seed = seed
        self.device = device
        self._home = home
        self._count = len(examples)
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def _part(self, step: int, batch_size: int, offset: int) -> tuple[Tensor, Tensor]:
        """Return the values of this rank's part of the batch of `step`, as they are stored, and their indices."""

    def batch(self, step: int, batch_size: int, offset: int = 0) -> ExampleBatch:
        """Return the part of this rank in the batch of `step`, which counts from 0, on the training device.

        batch_size: the number of examples over all ranks. offset: what is added to step * batch_size.
        """
        values, indices = self._part(step, batch_size, offset)
        x0 = to_float(self._on_device(values))
        y = None if self.labels is None else self._on_device(self.labels[indices])
        part = collectives.shard_slice(batch_size)
        if self.augment:
            generator = rng.generator(self.seed, "augment", step, device=self.device)
            uniform = torch.rand(batch_size, 11, generator=generator, device=self.device)[part]
            normal = torch.randn(batch_size, 4, generator=generator, device=self.device)[part]
            x0, labels = augment(x0, uniform, normal, self.augment, 1.0 if self.flip else self.augment)
            return ExampleBatch(x0, y, labels)
        if self.flip:
            generator = rng.generator(self.seed, "flip", step, device=self.device)
            coins = torch.rand(batch_size, 1, 1, 1, generator=generator, device=self.device)[part]
            x0.lerp_(x0.flip(-1), (coins < 0.5).float())  # exact for weights 0 and 1, and faster than torch.where
        return ExampleBatch(x0, y)

    def std(self) -> float:
        """Return the standard deviation of the values of some examples, to three digits. All ranks must call it."""
        x0 = self.batch(0, min(len(self), STD_EXAMPLES)).x0.double()
        mean, square = collectives.all_reduce_mean(torch.stack([x0.mean(), x0.square().mean()])).tolist()
        return float(f"{math.sqrt(max(square - mean**2, 0.0)):.3g}")  # rounding may give less than 0

    def _on_device(self, part: Tensor) -> Tensor:
        """Return `part` on the training device.

        It is copied to CUDA from pinned memory on a stream of its own, while the device computes the step before.
        """
        if self._copies is None:
            return part.to(self.device)
        with torch.cuda.stream(self._copies):
            copy = part.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        copy.record_stream(current)
        return copy

    def _indices_of(self, step: int, batch_size: int, offset: int) -> Tensor:
        """Return the indices of the examples in this rank's part of the batch of `step`."""
        part = collectives.shard_slice(batch_size)
        return self.indices(step * batch_size + offset + part.start, part.stop - part.start)

    def indices(self, start: int, count: int) -> Tensor:
        """Return the indices (count,) of the examples `start` to `start + count - 1` of the sequence."""
        parts: list[Tensor] = []
        while count > 0:
            epoch, first = divmod(start, len(self))
            part = self._order(epoch)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """Return the random order (N,) of the examples in `epoch`. Only that of the last epoch is cached."""
        if epoch not in self._orders:
            order = torch.randperm(len(self), generator=rng.generator(self.seed, "order", epoch))
            self._orders = {epoch: order.to(self._home)}  # copied once per epoch, not at each step
        return self._orders[epoch]


class Table(Batches):
    """Batches of examples that are in memory: on the training device if there is room, or else on the CPU."""

    def __init__(self, examples: Examples, flip: bool, seed: int, device: torch.device, augment: float = 0.0) -> None:
        values = examples.values
        home = device if values.numel() * values.element_size() <= room_on(device) else values.device
        super().__init__(examples, flip, seed, device, home, augment)
        self.values = values.to(home)

    def _part(self, step: int, batch_size: int, offset: int) -> tuple[Tensor, Tensor]:
        indices = self._indices_of(step, batch_size, offset)
        # On a CPU, index_select is 15 times faster than values[indices], because it copies whole images.
        return self.values.index_select(0, indices), indices


def room_on(device: torch.device) -> float:
    """Return the bytes that a table may take on the training device."""
    match device.type:
        case "cuda":
            return SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]
        case "mps":
            return SHARE_OF_MEMORY * torch.mps.recommended_max_memory()
    return math.inf


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert an array (N, H, W, C) or (N, H, W) of uint8 to a tensor (N, C, H, W)."""
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
