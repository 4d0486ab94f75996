"""A trained network in Python: `model = load("outputs/…")`, `model.sample(16, seed=7).save("grid.png")`."""

import io
import os
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ddpm_cli.checkpoints.loading import Trained, load_trained
from ddpm_cli.config import GROUPS, PRECISIONS, Sampler, TrainConfig, option_name
from ddpm_cli.config.averages import checked_weights
from ddpm_cli.config.plugins import default_values, load_plugins
from ddpm_cli.errors import UserError, check, one_of
from ddpm_cli.images.samples import picture
from ddpm_cli.sampling.build import compile_for_inference
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry, cycle_labels, generator_of
from ddpm_cli.sampling.tasks import wanted_classes
from ddpm_cli.tracking.terminal import ImageBar

IN_PICTURE = 256
"""Images that a grid shows at most."""


@dataclass(frozen=True)
class Samples:
    """Samples of a network, which Jupyter shows as a picture.

    Attributes:
        images: (N, C, H, W) float32 in [-1, 1] on the CPU; points (N, 2) of a network that was trained on points.
        labels: the class of each sample by its name, or None for an unconditional network.
    """

    images: Tensor
    labels: list[str] | None

    def picture(self) -> Image.Image:
        """Return a grid of the first 256 images, with a row for each class, or a scatter plot of all points."""
        if self.images.ndim == 2:
            return picture(self.images)
        return picture(self.images[:IN_PICTURE], self.labels and self.labels[:IN_PICTURE])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `picture` to a file, whose ending gives the format (.png, .webp, .jpg). Raise `UserError`."""
        try:
            self.picture().save(path)
        except (OSError, ValueError) as error:
            raise UserError(f"path={os.fspath(path)}: {error}; name a file that ends in .png") from error

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.picture().save(buffer, format="PNG")
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<{len(self)} samples of {'x'.join(map(str, self.images.shape[1:]))}>"


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's network, ready to draw samples."""

    trained: Trained
    source: str
    compiled: bool | None = None

    @property
    def config(self) -> TrainConfig:
        """The config of its run."""
        return self.trained.config

    @property
    def network(self) -> nn.Module:
        """forward(x, t, y), in evaluation mode."""
        return self.trained.network

    @property
    def classes(self) -> list[str]:
        """The names of the classes, empty for an unconditional network."""
        return self.trained.classes

    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        classes: str | int | list[str | int] | None = None,
        guidance_scale: float | None = None,
        batch_size: int = 64,
    ) -> Samples:
        """Draw `n` samples, the same as `ddpm-sample` with these options. A terminal or a notebook shows a bar.

        Args:
            sampler: the name of a sampler, which has the values of its YAML, or an option; None for that of the run.
            steps: number of steps of the sampler; None for its own.
            classes: name or number of a class, or a list of them, which the samples cycle through; None for all.

        Raise `UserError` for values that the network or its schedule does not support.
        """
        check(1 <= n <= 10**7, "n", n, "in 1..10000000")
        check(0 <= seed < 2**63, "seed", seed, "in 0..2**63-1")
        check(1 <= batch_size <= 10**6, "batch_size", batch_size, "in 1..1000000")
        chosen = _stock_sampler(sampler) if isinstance(sampler, str) else sampler
        changes = {} if steps is None else {"steps": steps}
        generator = generator_of(self.trained, chosen, None, guidance_scale, changes)
        wanted = wanted_classes(classes, self.classes, everything=range(len(self.classes)))
        labels = cycle_labels(n, wanted or [0])
        compile_for_inference(self.network, self.trained.device, self.compiled, n, batch_size, generator.calls)

        def draw(images: range) -> Tensor:
            return generator.draw(seed, labels, images, bar).cpu()

        with ImageBar(n, "samples") as bar:
            images = torch.cat([x for _, x in batches_with_oom_retry(n, batch_size, draw)])
        return Samples(images, [self.classes[label] for label in labels] if self.classes else None)

    def __repr__(self) -> str:
        config = self.config
        size = "x".join(map(str, config.dataset.shape))
        parameters = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return (
            f"<{config.model.name} of {parameters:.2f}M parameters for {size} {config.dataset.name}{classes}, "
            f"T={config.schedule.timesteps}, from {self.source} on {self.trained.device}>"
        )


def load(ckpt: str, weights: str, device: str, precision: str, compiled: bool | None) -> TrainedModel:
    """Load a checkpoint; see `ddpm_cli.load`."""
    load_plugins()
    check(precision in PRECISIONS, "precision", precision, one_of(PRECISIONS))
    return TrainedModel(load_trained(ckpt, checked_weights("weights", weights), device, precision), ckpt, compiled)


def _stock_sampler(name: str) -> Sampler:
    """The option of this name with the values of its YAML."""
    kinds: dict[str, type[Sampler]] = {option_name(option): option for option in GROUPS[Sampler]}  # type: ignore[misc]
    check(name in kinds, "sampler", name, one_of(sorted(kinds)))
    return kinds[name](**default_values(kinds[name]))
