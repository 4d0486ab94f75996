"""A small classifier of a dataset, whose features are used to measure the similarity of two sets of images."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_cli import rng
from ddpm_cli.data.table import Examples, Table, fingerprint, to_float
from ddpm_cli.distributed.devices import resolve_precision
from ddpm_cli.files import atomic, write

log = logging.getLogger(__name__)

SIDE = 32
"""Approximate length in pixels of the shorter side to which larger images are reduced."""
WIDTHS = (12, 48, 96)
"""Channels at full, half and quarter resolution. Few are used at full resolution, where they are most expensive."""
FEATURES = WIDTHS[-1]
"""Number of features."""
EPOCHS, MIN_STEPS = 4, 400
"""Training lasts for this number of epochs, but at least for this number of steps."""
BATCH_SIZE = 128
LR = 5e-3
SMOOTHING = 0.05
SEED = 0
EVAL_BATCH_SIZE = 500
VERSION = 1
"""Version of all constants above. Cached classifiers of other versions are not used."""


class Classifier(nn.Module):
    """Convolutions at three resolutions, global average pooling and a linear layer."""

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
        """Return the features (B, FEATURES) of images x0 (B, C, H, W) in [-1, 1]."""
        scale = SIDE / min(x0.shape[2:])
        if scale < 1:
            x0 = F.interpolate(x0, scale_factor=scale, mode="bilinear", antialias=True)
        return self.body(x0).mean(dim=(2, 3))

    def forward(self, x0: Tensor) -> Tensor:
        """Return the logits (B, classes) of images x0 (B, C, H, W) in [-1, 1]."""
        return self.head(self.features(x0))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier in evaluation mode on the CPU.

    accuracy: fraction of correct predictions on the test split, in [0, 1]. digest: a hash of the weights.
    """

    network: Classifier
    classes: list[str]
    accuracy: float
    digest: str


def load_or_train_classifier(train: Examples, test: Examples, cache: Path, device: torch.device) -> TrainedClassifier:
    """Return a classifier trained on the labels of `train`, with its accuracy on `test`, from `cache` if possible.

    Otherwise, it is trained on `device` and saved to the folder `cache`, as is its accuracy on each test split. On the
    same kind of machine, training is reproducible and does not change the state of the global random generator.
    """
    with torch.random.fork_rng():
        network = Classifier(train.values.shape[1], len(train.classes))
    file = cache / f"{fingerprint(train)}_{VERSION}.pt"
    if file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True)["network"])
    else:
        log.info("training the classifier of %s; it will be saved to %s", ", ".join(train.classes), file)
        network = _train_classifier(train, device)
        cache.mkdir(parents=True, exist_ok=True)
        size = sum(tensor.numel() * 4 for tensor in network.state_dict().values())
        with atomic(file, size) as partial:
            torch.save({"network": network.state_dict()}, partial)
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values()))
    digest = weights.hexdigest()[:12]
    measured = cache / f"accuracy_{digest}_{fingerprint(test)}"
    if not measured.is_file():
        write(measured, repr(_accuracy(network, test, device)).encode())
    accuracy = float(measured.read_text())
    log.info("classifier: accuracy on the test split %.1f%%", 100 * accuracy)
    return TrainedClassifier(network.eval().requires_grad_(False), train.classes, accuracy, digest)


def _train_classifier(train: Examples, device: torch.device) -> Classifier:
    """Train a classifier with AdamW and a one-cycle learning rate. Return it on the CPU."""
    with torch.random.fork_rng():
        rng.seed_everything(SEED, "classifier")
        network = Classifier(train.values.shape[1], len(train.classes)).to(device)
    steps = max(MIN_STEPS, EPOCHS * len(train) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.2)
    table = Table(train, flip=False, seed=SEED, device=device)
    dtype = resolve_precision("auto", device)
    for step in tqdm(range(steps), "classifier", unit="step", leave=False, disable=None):
        x0, y, _ = table.batch(step, BATCH_SIZE)
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
    """Return the fraction of correct predictions on `test`. Leave the network on the CPU in evaluation mode."""
    network = network.to(device).eval()
    predicted = [network(to_float(part.to(device))).argmax(1).cpu() for part in test.values.split(EVAL_BATCH_SIZE)]
    network.cpu()
    return torch.cat(predicted).eq(torch.as_tensor(test.labels)).float().mean().item()


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 3x3 convolution with batch normalization and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
