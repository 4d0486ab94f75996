"""Metrics of the similarity of two sets of images, computed by torch-fidelity.

The features come from one of its networks or from our own classifier.

FID: Heusel et al. 2017 (arXiv:1706.08500), eq. 6. KID: Binkowski et al. 2018 (arXiv:1801.01401). Inception score:
Salimans et al. 2016 (arXiv:1606.03498). Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from ddpm_cli import rng
from ddpm_cli.data.table import to_float
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.classifier import FEATURES, TrainedClassifier

CLASSIFIER_EXTRACTOR = "ddpm-classifier"
STANDARD_EXTRACTORS = {
    "fid": "inception-v3-compat",
    "kid": "inception-v3-compat",
    "is": "inception-v3-compat",
    "prc": "vgg16",
}
"""The networks with which published values are computed."""
TORCH_FIDELITY_NAMES = {"is": "isc"}
"""torch-fidelity's names of our metrics, where they differ."""
CLASSIFIER_NAMES = {
    "fid": "fd_classifier",
    "kid": "kd_classifier",
    "kid_std": "kd_classifier_std",
    "is_std": "is_classifier_std",
}
"""Names with the classifier's features, whose Fréchet distance is not an FID. Others get the suffix _classifier."""
KID_SUBSET, IS_SPLITS, NEIGHBOURS = 1000, 10, 3
MIN_SAMPLES = {"inception": 10_000, "classifier": 20 * FEATURES}
"""Number of samples, by kind of features, from which on the bias of a Fréchet distance is small.

With the classifier's features, the distance of n real images of Fashion-MNIST to the others is 1.4 for n=100, 0.2 for
n=480, 0.05 for n=2000 and 0.014 for n=10,000.
"""
RESAMPLES = 50
CONFIDENCE = 0.95


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity is untyped
    """Our classifier as a feature extractor of torch-fidelity, which takes uint8 images (B, C, H, W)."""

    def __init__(self, name: str, features_list: list[str], classifier: TrainedClassifier, **_: Any) -> None:
        super().__init__(name, features_list)
        self.network = classifier.network

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(2, 1, 28, 28, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network.features(to_float(images))
        found = {"features": features, "logits": self.network.head(features)}
        return tuple(found[layer] for layer in self.features_list)


register_feature_extractor(CLASSIFIER_EXTRACTOR, ClassifierFeatures)


@dataclass(frozen=True)
class Extractor:
    """A network and the layer that each metric needs. `name` identifies its features in the cache."""

    name: str
    network: FeatureExtractorBase
    layers: Mapping[str, str]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return features (B, D) by layer, on the CPU, of images (B, C, H, W) uint8 on the network's device."""
        if self.network.get_name() != CLASSIFIER_EXTRACTOR:
            images = images.expand(-1, 3, -1, -1)
        found: dict[str, Tensor] = self.network.convert_features_tuple_to_dict(self.network(images))
        return {layer: features.float().cpu() for layer, features in found.items()}


def extractors(metrics: list[str], classifier: TrainedClassifier | None, device: torch.device) -> dict[str, Extractor]:
    """Return an extractor for each of `metrics`: our classifier or, where it is None, the standard networks.

    Raises `UserError` if their weights are neither there nor can be downloaded.
    """
    found: dict[str, Extractor] = {}
    names = {metric: CLASSIFIER_EXTRACTOR if classifier else STANDARD_EXTRACTORS[metric] for metric in metrics}
    for name in dict.fromkeys(names.values()):
        kind = FEATURE_EXTRACTORS_REGISTRY[name]
        own = [metric for metric in metrics if names[metric] == name]
        layers = {
            metric: kind.get_default_feature_layer_for_metric(TORCH_FIDELITY_NAMES.get(metric, metric))
            for metric in own
        }
        wanted = list(dict.fromkeys(layers.values()))
        try:
            network = create_feature_extractor(name, wanted, cuda=False, verbose=False, classifier=classifier)
        except OSError as error:  # includes URLError
            raise UserError(
                f"features=inception: the weights of {name} are not in {torch.hub.get_dir()}/checkpoints and cannot be "
                "downloaded; put them there, or use features=classifier"
            ) from error
        key = f"classifier_{classifier.digest}" if classifier else name
        found |= dict.fromkeys(own, Extractor(key, network.to(device), layers))
    return found


def compute_metric(metric: str, samples: Tensor, reference: Tensor, seed: int) -> dict[str, float]:
    """Return the values of `metric` from the features of the samples (n, D) and of the reference (m, D).

    fid gives fid; kid gives kid and kid_std, over subsets; is gives is and is_std, over splits; prc gives precision and
    recall. `rename_metrics` turns these names into those for the user.
    """
    match metric:
        case "fid":
            return {"fid": _fid(samples, reference)}
        case "kid":
            size = min(KID_SUBSET, len(samples), len(reference))
            found = kid_features_to_metric(
                samples, reference, kid_subset_size=size, rng_seed=_seed32(seed), verbose=False
            )
            return {"kid": found["kernel_inception_distance_mean"], "kid_std": found["kernel_inception_distance_std"]}
        case "is":
            found = isc_features_to_metric(samples, splits=IS_SPLITS, rng_seed=_seed32(seed))
            return {"is": found["inception_score_mean"], "is_std": found["inception_score_std"]}
        case "prc":
            found = prc_features_to_metric(
                samples, reference, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
            )
            return {"precision": found["precision"], "recall": found["recall"]}
    raise ValueError(f"metric={metric}")


def rename_metrics(values: Mapping[str, float], features: str) -> dict[str, float]:
    """Return `values` under the names for the kind of features, inception or classifier."""
    if features == "inception":
        return dict(values)
    return {CLASSIFIER_NAMES.get(name, f"{name}_classifier"): value for name, value in values.items()}


def bootstrap_interval(samples: Tensor, reference: Tensor, seed: int) -> tuple[float, float]:
    """Return a 95% interval (low, high) of the Fréchet distance, from the bootstrap.

    The distance is biased at any n, and drawing with replacement adds, on average, the same bias again. The addition
    is subtracted: the interval shows the spread at this n, not the bias.
    """
    root = _root(_covariance(reference))
    mean = reference.double().mean(0)
    generator = rng.generator(seed, "resample")
    again = []
    for _ in range(RESAMPLES):
        some = samples[torch.randint(len(samples), (len(samples),), generator=generator)]
        again.append(_frechet(some.double().mean(0), _covariance(some), mean, root))
    distances = torch.tensor(again, dtype=torch.float64)
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = (distances.quantile(tails) - distances.mean() + _fid(samples, reference)).tolist()
    return low, high


def min_samples(metric: str, features: str) -> int:
    """Return the number of samples from which on the bias of `metric` is small."""
    return MIN_SAMPLES[features] if metric == "fid" else {"is": 500 * IS_SPLITS, "prc": 1000}.get(metric, 0)


def _fid(samples: Tensor, reference: Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (samples, reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def _frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_root: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians.

    The second is given by the square root of its covariance, which is ten times as fast.
    """
    eigenvalues = torch.linalg.eigvalsh(other_root @ covariance @ other_root).clamp(min=0)
    traces = covariance.trace() + (other_root**2).sum()
    return ((mean - other_mean).square().sum() + traces - 2 * eigenvalues.sqrt().sum()).item()


def _covariance(features: Tensor) -> Tensor:
    return torch.cov(features.double().T)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def _seed32(seed: int) -> int:
    """Reduce a seed to 32 bits, for generators that take no more."""
    return seed % 2**32
