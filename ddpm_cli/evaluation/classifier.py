"""A small classifier of a data set, whose features say how alike two sets of its images are."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_cli import rng
from ddpm_cli.data.table import Examples, Table, to_float
from ddpm_cli.distributed.devices import resolve_precision
from ddpm_cli.files import atomic

log = logging.getLogger(__name__)

SIDE = 32
"""Larger images are shown to it at about this many pixels a side."""
WIDTHS = (12, 48, 96)
"""Channels at the full, half and quarter size; few where they cost most."""
FEATURES = WIDTHS[-1]
EPOCHS, LEAST_STEPS = 4, 400
BATCH_SIZE = 128
LR = 5e-3
SMOOTHING = 0.05
SEED = 0
AT_ONCE = 500
VERSION = 1
"""Of all of the above: a cached classifier of another one is not used."""


class Classifier(nn.Module):
    """Convolutions at three sizes, their channels' means, and a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        full, half, quarter = WIDTHS
        self.body = nn.Sequential(
            _convolution(channels, full),
            nn.MaxPool2d(2, ceil_mode=True),
            _convolution(full, half),
            _convolution(half, half),
            nn.MaxPool2d(2, ceil_mode=True),
            _convolution(half, quarter),
            _convolution(quarter, quarter),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x0: Tensor) -> Tensor:
        """x0: (B, C, H, W) in [-1, 1] -> (B, FEATURES)."""
        scale = SIDE / min(x0.shape[2:])
        if scale < 1:
            x0 = F.interpolate(x0, scale_factor=scale, mode="bilinear", antialias=True)
        return self.body(x0).mean(dim=(2, 3))

    def forward(self, x0: Tensor) -> Tensor:
        """x0: (B, C, H, W) in [-1, 1] -> logits (B, classes)."""
        return self.head(self.features(x0))


@dataclass(frozen=True)
class TrainedClassifier:
    """For evaluation, on the CPU. accuracy: on the test split; digest: by which its weights are known."""

    network: Classifier
    classes: list[str]
    accuracy: float
    digest: str


def trained_classifier(
    train: Examples, test: Examples, fingerprint: str, cache: Path, device: torch.device
) -> TrainedClassifier:
    """The classifier of the labels of `train`, from `cache` or trained now and kept there.

    The same data make the same classifier on the same kind of machine. `fingerprint`: that of `train`.
    """
    with torch.random.fork_rng():
        network = Classifier(train.values.shape[1], len(train.classes))
    file = cache / f"{fingerprint}_{VERSION}.pt"
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        network.load_state_dict(kept["network"])
        accuracy = kept["accuracy"]
    else:
        log.info("training the classifier of %s, once: it is kept in %s", ", ".join(train.classes), file)
        network = _fitted(train, device)
        accuracy = _accuracy(network, test, device)
        cache.mkdir(parents=True, exist_ok=True)
        size = sum(tensor.numel() * 4 for tensor in network.state_dict().values())
        with atomic(file, size) as partial:
            torch.save({"network": network.state_dict(), "accuracy": accuracy}, partial)
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values()))
    log.info("its accuracy on the test split is %.1f%%", 100 * accuracy)
    return TrainedClassifier(network.eval().requires_grad_(False), train.classes, accuracy, digest.hexdigest()[:12])


def _fitted(train: Examples, device: torch.device) -> Classifier:
    """A few epochs of AdamW at a rate that rises and falls; back on the CPU."""
    with torch.random.fork_rng():
        rng.seed_everything(SEED, "classifier")
        network = Classifier(train.values.shape[1], len(train.classes)).to(device)
    steps = max(LEAST_STEPS, EPOCHS * len(train) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.2)
    table = Table(train, flip=False, seed=SEED, device=device)
    dtype = resolve_precision("auto", device)
    for step in tqdm(range(steps), "classifier", unit="step", leave=False, disable=None):
        x0, y = table.batch(step, BATCH_SIZE)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(x0)
        loss = F.cross_entropy(logits.float(), torch.as_tensor(y), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.cpu()


@torch.no_grad()
def _accuracy(network: Classifier, test: Examples, device: torch.device) -> float:
    network = network.to(device).eval()
    found = [network(to_float(part.to(device))).argmax(1).cpu() for part in test.values.split(AT_ONCE)]
    network.cpu()
    return torch.cat(found).eq(torch.as_tensor(test.labels)).float().mean().item()


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
