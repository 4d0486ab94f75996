"""Compare samples with a split of real images: metrics, their values for real images and the predicted classes."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.config import METRICS, implementation_of, plugin_metrics
from ddpm_cli.data.table import Examples, chosen, fingerprint, numbered_by
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.classifier import TrainedClassifier, load_or_train_classifier
from ddpm_cli.evaluation.fidelity import (
    FEWEST,
    Extractor,
    Statistics,
    bootstrap_interval,
    compute_metric,
    extractors,
    frechet_distance,
    min_samples,
    rename_metrics,
    statistics_of,
)
from ddpm_cli.files import atomic, cache_folder

log = logging.getLogger(__name__)

BATCH_SIZE = 128
PREVIEW = 64
"""Number of samples that are kept for display."""
OTHER = {"train": "test", "test": "train"}
"""The split of the real images that give the floor, by the reference split."""

Features = dict[str, dict[str, Tensor]]
"""Features (N, D) by extractor name and layer name."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing n samples with the reference split.

    intervals: 95% bootstrap intervals of the mean of some metrics at this n. floor: the same metrics for `floor_n` real
    images of the other split. classifier: the accuracy and the digest of the classifier, the number of samples in each
    predicted class and the mean confidence; None without a classifier. first: the first samples, (B, C, H, W) uint8.
    """

    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    floor: dict[str, float]
    floor_n: int
    classifier: dict[str, Any] | None
    first: Tensor


class SampleEvaluator:
    """Computes metrics of samples with a split of real images as the reference.

    splits: the splits train and test by name. split: the name of the reference. metrics: any of fid, kid, is, prc and
    those of plugins. features: inception or classifier. The classifier requires labels and is trained here unless it is
    cached. statistics: of other images, which fid compares with instead of the reference.

    Raises `UserError` if labels are missing or a split is too small, if the statistics are of another number of
    features, or if the weights of inception are missing and cannot be downloaded.
    """

    def __init__(
        self,
        splits: Mapping[str, Examples],
        split: str,
        metrics: list[str],
        features: str,
        device: torch.device,
        statistics: Statistics | None = None,
    ) -> None:
        fingerprints = {name: fingerprint(examples) for name, examples in splits.items()}
        splits = {name: replace(examples, fingerprint=fingerprints[name]) for name, examples in splits.items()}
        built_in = [metric for metric in metrics if metric in METRICS]
        check_size(splits, f"metrics={built_in}", built_in)
        self.classifier = None
        if features == "classifier" and built_in:
            train, test = for_classifier(splits, "features=classifier", "features=inception")
            self.classifier = load_or_train_classifier(train, test, cache_folder() / "classifier", device)
        self.by_metric = extractors(built_in, self.classifier, device)
        of_plugins = plugin_metrics()
        self.of_images = {name: implementation_of(of_plugins[name]) for name in metrics if name in of_plugins}
        self.extractors = list({extractor.name: extractor for extractor in self.by_metric.values()}.values())
        self.splits = splits
        self.reference, self.real = splits[split], splits[OTHER[split]]
        self.fingerprints = fingerprints[split], fingerprints[OTHER[split]]  # of the reference and the other split
        self.features = features
        self.device = device
        self.statistics = statistics
        self._warned = False
        if statistics is not None:
            self._check_statistics(statistics)

    def compare(self, batches: Iterable[Tensor], seed: int) -> Comparison:
        """Compare batches of samples (B, C, H, W) uint8 with the reference.

        seed: the seed of random subsets and of the bootstrap.
        """
        images: list[Tensor] = []
        batches = _kept(batches, images) if self.of_images else batches
        samples, first, n = _extract_features(batches, self.extractors, self.device)
        if not self._warned:
            _warn_if_few(n, self.by_metric, self.features)
            self._warned = True
        floor_n = min(n, len(self.real))
        reference = _cached_features(
            self.reference, len(self.reference), self.fingerprints[0], self.extractors, self.device
        )
        real = _cached_features(self.real, floor_n, self.fingerprints[1], self.extractors, self.device)
        intervals = {}
        if "fid" in self.by_metric:
            (key,) = rename_metrics({"fid": 0.0}, self.features)
            statistics = self.statistics or statistics_of(self._features_for("fid", reference))
            intervals[key] = bootstrap_interval(self._features_for("fid", samples), statistics, seed)
        classes = None if self.classifier is None else _count_classes(self.classifier, samples)
        metrics, floor = self._metrics(samples, reference, seed), self._metrics(real, reference, seed)
        if self.of_images:
            metrics |= self._metrics_of_images(torch.cat(images), seed)
            floor |= self._metrics_of_images(self.real.values[chosen(len(self.real), floor_n)], seed)
        return Comparison(n, metrics, intervals, floor, floor_n, classes, first)

    def _check_statistics(self, statistics: Statistics) -> None:
        """Raise `UserError` unless statistics are of as many features as an image has."""
        one = _extract_features([self.reference.values[:1]], self.extractors, self.device)[0]
        count = self._features_for("fid", one).shape[1]
        if len(statistics.mu) != count:
            raise UserError(
                f"reference: has {len(statistics.mu)} features, and {self.features} has {count}; name another file"
            )

    def _metrics(self, features: Features, reference: Features, seed: int) -> dict[str, float]:
        """Return all metrics of a set of images, by their names for users."""
        found: dict[str, float] = {}
        for metric in self.by_metric:
            own = self._features_for(metric, features)
            if metric == "fid" and self.statistics is not None:
                found["fid"] = frechet_distance(own, self.statistics)
            else:
                found |= compute_metric(metric, own, self._features_for(metric, reference), seed)
        return rename_metrics(found, self.features)

    def _metrics_of_images(self, images: Tensor, seed: int) -> dict[str, float]:
        """Return the metrics of plugins of a set of images (N, C, H, W) uint8."""
        return {name: float(metric(images, self.reference.values, seed)) for name, metric in self.of_images.items()}

    def _features_for(self, metric: str, features: Features) -> Tensor:
        """Return the features (N, D) that `metric` is computed from."""
        extractor = self.by_metric[metric]
        return features[extractor.name][extractor.layers[metric]]


def check_size(splits: Mapping[str, Examples], key: str, metrics: list[str]) -> None:
    """Raise `UserError`, which names `key`, if a split has too few images for some of `metrics`."""
    least = max((FEWEST[metric] for metric in metrics), default=1)
    for name, examples in splits.items():
        if len(examples) < least:
            raise UserError(
                f"{key}: compares at least {least} images of each split, and the {name} split has {len(examples)}; use "
                "more images"
            )


def for_classifier(splits: Mapping[str, Examples], key: str, instead: str) -> tuple[Examples, Examples]:
    """Return the train split and the test split with labels by the classes of the train split.

    Raise `UserError`, which names `key`, if a split has no labels, or if the test split has images of other classes.
    """
    train, test = splits["train"], splits["test"]
    if train.labels is None or test.labels is None:
        raise UserError(f"{key}: these data have no labels to train a classifier on; use {instead}")
    return train, numbered_by(train.classes, test, f"{key}: the test split", "the train split has")


def _kept(batches: Iterable[Tensor], images: list[Tensor]) -> Iterator[Tensor]:
    """Yield the batches and append them to `images`."""
    for batch in batches:
        images.append(batch)
        yield batch


def _extract_features(
    batches: Iterable[Tensor], by: list[Extractor], device: torch.device
) -> tuple[Features, Tensor, int]:
    """Return the features of all images in `batches`, the first `PREVIEW` images and the number of images."""
    parts: dict[str, dict[str, list[Tensor]]] = {extractor.name: {} for extractor in by}
    first: list[Tensor] = []
    n = 0
    for batch in batches:
        if n < PREVIEW:
            first.append(batch)
        n += len(batch)
        for extractor in by:
            for layer, found in extractor(batch.to(device)).items():
                parts[extractor.name].setdefault(layer, []).append(found)
    whole = {name: {layer: torch.cat(found) for layer, found in layers.items()} for name, layers in parts.items()}
    return whole, torch.cat(first)[:PREVIEW], n


def _cached_features(
    examples: Examples, count: int, data_fingerprint: str, by: list[Extractor], device: torch.device
) -> Features:
    """Return the features of `count` of `examples`, those that are `chosen`. Cached in a file."""
    found: Features = {}
    numbers = chosen(len(examples), count)
    for extractor in by:
        file = cache_folder() / "features" / f"{data_fingerprint}_{extractor.name}_{count}.pt"
        layers = set(extractor.layers.values())
        cached = torch.load(file, weights_only=True) if file.is_file() else {}
        if not layers <= cached.keys():
            log.info("computing the features of %d real images; they will be saved to %s", count, file)
            parts = tqdm(numbers.split(BATCH_SIZE), "real images", unit="batch", leave=False, disable=None)
            batches = (examples.values[part] for part in parts)  # the table may be larger than the memory
            cached |= _extract_features(batches, [extractor], device)[0][extractor.name]
            _save_features(cached, file)
        found[extractor.name] = cached
    return found


def _save_features(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors to a file that `torch.load` reads, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) as partial:
        torch.save(tensors, partial)


def _count_classes(classifier: TrainedClassifier, samples: Features) -> dict[str, Any]:
    """Return the number of samples in each predicted class, with facts about the classifier (see `Comparison`)."""
    (layers,) = samples.values()
    head = classifier.network.head  # where the extractor has put it; moving it would break the next comparison
    with torch.no_grad():
        logits = head(layers["features"].to(head.weight.device)).cpu() if "features" in layers else layers["logits"]
    confidence, found = logits.softmax(dim=1).max(dim=1)
    counts = torch.bincount(found, minlength=len(classifier.classes)).tolist()
    return {
        "accuracy": classifier.accuracy,
        "digest": classifier.digest,
        "classes": dict(zip(classifier.classes, counts, strict=True)),
        "confidence": confidence.mean().item(),
    }


def _warn_if_few(n: int, metrics: Iterable[str], features: str) -> None:
    """Log a warning for each metric with a large bias at n samples."""
    for metric in metrics:
        if n < (enough := min_samples(metric, features)):
            (name,) = rename_metrics({metric: 0.0}, features)
            log.warning(
                "%d samples are few for %s, which has a large bias then: compare it only with values for the same "
                "number, such as its floor, or use %d or more",
                n,
                name,
                enough,
            )
