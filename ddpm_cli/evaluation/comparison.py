"""Samples held against a split of real images: distances, their floor, the classes that are found."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.data.fingerprint import fingerprint
from ddpm_cli.data.sources import cache_folder
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.classifier import TrainedClassifier, trained_classifier
from ddpm_cli.evaluation.fidelity import Extractor, extractors, interval, least_samples, measured, named
from ddpm_cli.files import atomic

log = logging.getLogger(__name__)

AT_ONCE = 128
SHOWN = 64
"""Samples kept to look at."""
OTHER = {"train": "test", "test": "train"}

Features = dict[str, dict[str, Tensor]]
"""What each extractor, by its name, sees in its layers: (N, D)."""


@dataclass(frozen=True)
class Comparison:
    """What was found of n samples.

    intervals: 95%, by resampling. floor: the same figures of `floor_n` real images of the other split. classifier: its
    accuracy and digest, how many samples it finds in each class, and its mean confidence. first: the first samples,
    (B, C, H, W) uint8.
    """

    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    floor: dict[str, float]
    floor_n: int
    classifier: dict[str, Any] | None
    first: Tensor


class Judge:
    """What holds samples against `split` by `metrics`: fid, kid, is and prc.

    splits: train and test. features: inception, or classifier, which takes labels and is trained now if it never was.
    Raises `UserError` where the one's weights or the other's labels are missing.
    """

    def __init__(
        self, splits: Mapping[str, Examples], split: str, metrics: list[str], features: str, device: torch.device
    ) -> None:
        prints = {name: fingerprint(examples) for name, examples in splits.items()}
        self.classifier = _classifier(splits, prints["train"], device) if features == "classifier" else None
        self.by_metric = extractors(metrics, self.classifier, device)
        self.extractors = list({extractor.name: extractor for extractor in self.by_metric.values()}.values())
        self.splits = splits
        self.reference, self.real = splits[split], splits[OTHER[split]]
        self.prints = prints[split], prints[OTHER[split]]  # of the reference, and of the others
        self.features = features
        self.device = device

    def compare(self, batches: Iterable[Tensor], seed: int) -> Comparison:
        """What there is to say of `batches` of samples, (B, C, H, W) uint8; `seed`: of what is drawn to say it."""
        samples, first, n = _seen(batches, self.extractors, self.device)
        _warn_of_few(n, self.by_metric, self.features)
        floor_n = min(n, len(self.real))
        reference = _kept(self.reference, len(self.reference), self.prints[0], self.extractors, self.device)
        real = _kept(self.real, floor_n, self.prints[1], self.extractors, self.device)
        intervals = {}
        if "fid" in self.by_metric:
            (key,) = named({"fid": 0.0}, self.features)
            intervals[key] = interval(self._of("fid", samples), self._of("fid", reference), seed)
        told = None if self.classifier is None else _told(self.classifier, samples)
        metrics, floor = self._figures(samples, reference, seed), self._figures(real, reference, seed)
        return Comparison(n, metrics, intervals, floor, floor_n, told, first)

    def _figures(self, of: Features, reference: Features, seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for metric in self.by_metric:
            found |= measured(metric, self._of(metric, of), self._of(metric, reference), seed)
        return named(found, self.features)

    def _of(self, metric: str, seen: Features) -> Tensor:
        """The features, (N, D), that `metric` is about."""
        extractor = self.by_metric[metric]
        return seen[extractor.name][extractor.layers[metric]]


def _classifier(splits: Mapping[str, Examples], print_of_train: str, device: torch.device) -> TrainedClassifier:
    if any(examples.labels is None for examples in splits.values()):
        raise UserError("features=classifier: these data have no labels to train one on; use features=inception")
    return trained_classifier(splits["train"], splits["test"], print_of_train, cache_folder() / "classifier", device)


def _seen(batches: Iterable[Tensor], by: list[Extractor], device: torch.device) -> tuple[Features, Tensor, int]:
    """What the extractors see in `batches`, the first of their images, and how many there were."""
    parts: dict[str, dict[str, list[Tensor]]] = {extractor.name: {} for extractor in by}
    first: list[Tensor] = []
    n = 0
    for batch in batches:
        if n < SHOWN:
            first.append(batch)
        n += len(batch)
        for extractor in by:
            for layer, found in extractor(batch.to(device)).items():
                parts[extractor.name].setdefault(layer, []).append(found)
    whole = {name: {layer: torch.cat(found) for layer, found in layers.items()} for name, layers in parts.items()}
    return whole, torch.cat(first)[:SHOWN], n


def _kept(examples: Examples, count: int, print_of: str, by: list[Extractor], device: torch.device) -> Features:
    """What the extractors see in `count` of `examples`, drawn once and for all; kept for the next time."""
    found: Features = {}
    chosen = torch.randperm(len(examples), generator=rng.generator("reference"))[:count]
    for extractor in by:
        file = cache_folder() / "features" / f"{print_of}_{extractor.name}_{count}.pt"
        layers = set(extractor.layers.values())
        kept = torch.load(file, weights_only=True) if file.is_file() else {}
        if not layers <= kept.keys():
            log.info("looking at %d real images, once: what is seen is kept in %s", count, file)
            kept |= _seen(examples.values[chosen].split(AT_ONCE), [extractor], device)[0][extractor.name]
            _keep(kept, file)
        found[extractor.name] = kept
    return found


def _keep(tensors: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) as partial:
        torch.save(tensors, partial)


def _told(classifier: TrainedClassifier, samples: Features) -> dict[str, Any]:
    """What the classifier says of the samples."""
    (layers,) = samples.values()
    with torch.no_grad():
        logits = classifier.network.cpu().head(layers["features"]) if "features" in layers else layers["logits"]
    confidence, found = logits.softmax(dim=1).max(dim=1)
    counts = torch.bincount(found, minlength=len(classifier.classes)).tolist()
    return {
        "accuracy": classifier.accuracy,
        "digest": classifier.digest,
        "classes": dict(zip(classifier.classes, counts, strict=True)),
        "confidence": confidence.mean().item(),
    }


def _warn_of_few(n: int, metrics: Iterable[str], features: str) -> None:
    for metric in metrics:
        if n < (enough := least_samples(metric, features)):
            log.warning(
                "n=%d is few for %s, whose bias grows as n falls: compare it only with figures of the same n, such "
                "as its floor; n=%d is enough",
                n,
                metric,
                enough,
            )
