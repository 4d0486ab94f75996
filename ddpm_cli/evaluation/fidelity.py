"""Metrics of the similarity of two sets of images, computed by torch-fidelity.

Features are computed by a network of torch-fidelity or by the classifier of `ddpm_cli.evaluation.classifier`.

FID: Heusel et al. 2017 (arXiv:1706.08500), eq. 6. KID: Binkowski et al. 2018 (arXiv:1801.01401). Inception score:
Salimans et al. 2016 (arXiv:1606.03498). Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991).
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
"""Networks that are used for published values, by metric."""
TORCH_FIDELITY_NAMES = {"is": "isc"}
"""Names of metrics in torch-fidelity that differ from ours."""
CLASSIFIER_NAMES = {
    "fid": "fd_classifier",
    "kid": "kd_classifier",
    "kid_std": "kd_classifier_std",
    "is_std": "is_classifier_std",
}
"""Names of metrics with features of the classifier, which must not be mistaken for FID and KID.

Other metrics have the suffix _classifier.
"""
KID_SUBSET, IS_SPLITS, NEIGHBOURS = 1000, 10, 3
"""Largest subset of KID, splits of the inception score, and number of neighbours for precision and recall."""
MIN_SAMPLES = {"inception": 10_000, "classifier": 20 * FEATURES}
"""Number of samples at which the bias of the Fréchet distance becomes small, by kind of features.

With the features of the classifier, the distance between n real images of Fashion-MNIST and the other split is 1.4 for
n=100, 0.2 for n=480, 0.05 for n=2000 and 0.014 for n=10,000.
"""
FEWEST = {"fid": 2, "kid": 4, "is": IS_SPLITS, "prc": NEIGHBOURS + 1}
"""Number of images in a set from which each metric can be computed at all."""
RESAMPLES = 50
"""Number of resamples of the bootstrap."""
CONFIDENCE = 0.95


class Statistics(NamedTuple):
    """The mean mu (D,) and covariance sigma (D, D) of features, both float64."""

    mu: np.ndarray
    sigma: np.ndarray


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity is untyped
    """A classifier as a feature extractor of torch-fidelity, for images (B, C, H, W) uint8."""

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
    """A network that computes features.

    name: identifies the features in the cache. layers: the layer that each metric uses.
    """

    name: str
    network: FeatureExtractorBase
    layers: Mapping[str, str]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features (B, D) of images (B, C, H, W) uint8 by layer, on the CPU.

        The images must be on the device of the network.
        """
        if self.network.get_name() != CLASSIFIER_EXTRACTOR:
            images = images.expand(-1, 3, -1, -1)
        found: dict[str, Tensor] = self.network.convert_features_tuple_to_dict(self.network(images))
        return {layer: features.float().cpu() for layer, features in found.items()}


def extractors(metrics: list[str], classifier: TrainedClassifier | None, device: torch.device) -> dict[str, Extractor]:
    """Return the extractor of each metric: `classifier`, or the standard networks if it is None.

    Raises `UserError` if the weights of a standard network are missing and cannot be downloaded.
    """
    found: dict[str, Extractor] = {}
    names = {metric: CLASSIFIER_EXTRACTOR if classifier else STANDARD_EXTRACTORS[metric] for metric in metrics}
    for name in dict.fromkeys(names.values()):
        kind = FEATURE_EXTRACTORS_REGISTRY[name]
        users = [metric for metric in metrics if names[metric] == name]
        layers = {
            metric: kind.get_default_feature_layer_for_metric(TORCH_FIDELITY_NAMES.get(metric, metric))
            for metric in users
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
        found |= dict.fromkeys(users, Extractor(key, network.to(device), layers))
    return found


def read_statistics(reference: str) -> Statistics:
    """Return the mean and covariance in an npz file. Raise `UserError` if it has none.

    EDM writes such files as reference statistics, and guided-diffusion beside the images of its reference batches.
    """
    try:
        with np.load(Path(reference).expanduser()) as arrays:  # pickles are not loaded by default
            mean, covariance = arrays["mu"], arrays["sigma"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"reference={reference}: must be an npz file with the arrays mu and sigma") from error
    numbers = mean.dtype.kind == covariance.dtype.kind == "f" and np.isfinite(mean).all()
    if not (numbers and mean.ndim == 1 and covariance.shape == 2 * mean.shape and np.isfinite(covariance).all()):
        raise UserError(
            f"reference={reference}: mu must be (D,) and sigma (D, D) finite floats, and they are {mean.dtype} "
            f"{mean.shape} and {covariance.dtype} {covariance.shape}"
        )
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64))


def statistics_of(features: Tensor) -> Statistics:
    """Return the mean and covariance of features (n, D), computed by torch-fidelity."""
    found = fid_features_to_statistics(features)
    return Statistics(found["mu"].astype(np.float64), found["sigma"])


def compute_metric(metric: str, samples: Tensor, reference: Tensor, seed: int) -> dict[str, float]:
    """Compute `metric` from the features of samples (n, D) and of the reference (m, D).

    The keys are fid for fid; kid and kid_std, over random subsets, for kid; is and is_std, over splits, for is;
    precision and recall for prc. `rename_metrics` converts them to the names for users. seed: the seed of subsets and
    splits.

    A subset of KID has at most half of the images of the smaller set, because subsets that are whole sets would not
    differ. For sets of equal size, the standard deviation over halves is about the standard error of KID (the
    delete-half jackknife, Shao & Wu 1989), up to twice it if the distributions are equal. If one set is much larger, it
    is up to 1.7 times the standard error, or up to 4 times. From 2 `KID_SUBSET` images on it is the standard deviation
    over subsets of `KID_SUBSET` that the literature gives, which is larger than the standard error.
    """
    match metric:
        case "fid":
            return {"fid": frechet_distance(samples, statistics_of(reference))}
        case "kid":
            size = min(KID_SUBSET, min(len(samples), len(reference)) // 2)
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
    """Return `values` with the names for users. features: inception or classifier."""
    if features == "inception":
        return dict(values)
    return {CLASSIFIER_NAMES.get(name, f"{name}_classifier"): value for name, value in values.items()}


def bootstrap_interval(samples: Tensor, reference: Statistics, seed: int) -> tuple[float, float]:
    """Return a 95% bootstrap interval (low, high) of the mean Fréchet distance of n samples (n, D) to the reference.

    It is a confidence interval of the mean distance over sets of n samples, and covers it slightly less often than
    95% (89 to 93% in simulations). It contains the distance of another set of n samples only 72 to 85% of the time: for
    that it would have to be wider by a factor of sqrt(2). Where most of the distance is its bias, near the floor, the
    interval is too wide, by a factor of up to two.

    The distance is biased for any n, and resampling with replacement adds about the same bias again. This addition is
    subtracted, so the interval does not contain the bias.
    """
    root, mean = _matrix_sqrt(torch.from_numpy(reference.sigma)), torch.from_numpy(reference.mu)
    generator = rng.generator(seed, "resample")
    resampled = []
    for _ in range(RESAMPLES):
        some = samples[torch.randint(len(samples), (len(samples),), generator=generator)]
        resampled.append(_frechet(some.double().mean(0), _covariance(some), mean, root))
    distances = torch.tensor(resampled, dtype=torch.float64)
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = (distances.quantile(tails) - distances.mean() + frechet_distance(samples, reference)).tolist()
    return low, high


def min_samples(metric: str, features: str) -> int:
    """Return the number of samples at which the bias of `metric` becomes small; 0 if it has no bias."""
    return MIN_SAMPLES[features] if metric == "fid" else {"is": 500 * IS_SPLITS, "prc": 1000}.get(metric, 0)


def frechet_distance(samples: Tensor, reference: Statistics) -> float:
    """Return the Fréchet distance of features (n, D) to the reference, computed by torch-fidelity."""
    statistics = [one._asdict() for one in (statistics_of(samples), reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def _frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_root: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians.

    other_root: the square root of the covariance of the second one. Computing it only once makes repeated calls ten
    times faster.
    """
    eigenvalues = torch.linalg.eigvalsh(other_root @ covariance @ other_root).clamp(min=0)
    traces = covariance.trace() + (other_root**2).sum()
    return ((mean - other_mean).square().sum() + traces - 2 * eigenvalues.sqrt().sum()).item()


def _covariance(features: Tensor) -> Tensor:
    """Return the covariance (D, D) of features (N, D) in float64."""
    return torch.cov(features.double().T)


def _matrix_sqrt(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def _seed32(seed: int) -> int:
    """Reduce a seed to 32 bits, the limit of the generators of NumPy."""
    return seed % 2**32
