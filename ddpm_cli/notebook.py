"""A trained network in a notebook: `model = load("outputs/…")`, `model.sample(16, seed=7)`."""

import io
from dataclasses import dataclass
from importlib.resources import files

import torch
import yaml
from torch import Tensor, nn

from ddpm_cli.checkpoints.loading import Trained, load_trained
from ddpm_cli.config import GROUPS, PRECISIONS, Sampler, TrainConfig, option_name
from ddpm_cli.errors import check, one_of
from ddpm_cli.images.samples import picture
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry, cycle_labels, generator_of
from ddpm_cli.sampling.tasks import wanted_classes

IN_PICTURE = 256
"""Images that a grid shows at most."""


class Samples(Tensor):
    """Images (N, C, H, W) in [-1, 1], or points (N, 2), on the CPU: a tensor, which Jupyter shows as a picture."""

    def _repr_png_(self) -> bytes | None:
        images = self.ndim == 4 and self.shape[1] in (1, 3)
        if self.numel() == 0 or not (images or (self.ndim == 2 and self.shape[1] == 2)):
            return None  # Jupyter then shows the numbers
        buffer = io.BytesIO()
        plain = self.detach().as_subclass(Tensor)
        picture(plain[:IN_PICTURE] if images else plain).save(buffer, format="PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's network, ready to draw samples."""

    trained: Trained
    source: str

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
        """`n` samples, those of `ddpm-sample ckpt=… n=… seed=…` with the same options.

        Args: sampler: ddpm, ddim, dpmpp_2m or heun with the values of its YAML, or an option; None for that of the
        run. steps: of the sampler. classes: names or numbers, in turn; None for all. Raises `UserError` for what the
        network, or its schedule, cannot do.
        """
        check(1 <= n <= 10**7, "n", n, "in 1..10000000")
        check(0 <= seed < 2**63, "seed", seed, "in 0..2**63-1")
        check(1 <= batch_size <= 10**6, "batch_size", batch_size, "in 1..1000000")
        chosen = _stock_sampler(sampler) if isinstance(sampler, str) else sampler
        changes = {} if steps is None else {"steps": steps}
        generator = generator_of(self.trained, chosen, None, guidance_scale, changes)
        wanted = wanted_classes(classes, self.classes, everything=range(len(self.classes)))
        labels = cycle_labels(n, wanted or [0])

        def drawn(images: range) -> Tensor:
            *_, last = generator.steps(seed, labels, images)
            return last.x.cpu()

        return torch.cat([x for _, x in batches_with_oom_retry(n, batch_size, drawn)]).as_subclass(Samples)

    def __repr__(self) -> str:
        config = self.config
        size = "x".join(map(str, config.dataset.shape))
        parameters = sum(parameter.numel() for parameter in self.network.parameters()) / 1e6
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return (
            f"<{config.model.name} of {parameters:.2f}M parameters for {size} {config.dataset.name}{classes}, "
            f"T={config.schedule.timesteps}, from {self.source} on {self.trained.device}>"
        )


def load(ckpt: str, weights: str, device: str, precision: str) -> TrainedModel:
    """Load a checkpoint; see `ddpm_cli.load`."""
    check(weights in ("ema", "model"), "weights", weights, "ema or model")
    check(precision in PRECISIONS, "precision", precision, one_of(PRECISIONS))
    return TrainedModel(load_trained(ckpt, weights, device, precision), ckpt)


def _stock_sampler(name: str) -> Sampler:
    """The option of this name with the values of its YAML."""
    kinds: dict[str, type[Sampler]] = {option_name(option): option for option in GROUPS[Sampler]}  # type: ignore[misc]
    check(name in kinds, "sampler", name, one_of(sorted(kinds)))
    values = yaml.safe_load((files("ddpm_cli.configs") / "sampler" / f"{name}.yaml").read_text())
    del values["defaults"]  # Hydra's
    return kinds[name](name=name, **values)
