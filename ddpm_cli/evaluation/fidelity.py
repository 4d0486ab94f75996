"""How alike two sets of images are to a network: torch-fidelity measures, one of its networks or our own looks.

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

OURS = "ddpm-classifier"
THEIRS = {"fid": "inception-v3-compat", "kid": "inception-v3-compat", "is": "inception-v3-compat", "prc": "vgg16"}
"""The networks by which the literature's figures are computed."""
SHORT = {"is": "isc"}
"""What torch-fidelity calls a metric of ours."""
NAMES = {
    "fid": "fd_classifier",
    "kid": "kd_classifier",
    "kid_std": "kd_classifier_std",
    "is_std": "is_classifier_std",
}
"""A Fréchet distance of other features is no FID; the other figures get _classifier behind their names."""
KID_SUBSET, IS_SPLITS, NEIGHBOURS = 1000, 10, 3
ENOUGH = {"inception": 10_000, "classifier": 20 * FEATURES}
"""Samples of which a Fréchet distance is little biased: of 100 real images of Fashion-MNIST it is 1.4 to the others, of
480 0.2, of 2000 0.05 and of 10,000 0.014, by the classifier's features."""
RESAMPLES = 50
CONFIDENCE = 0.95


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]  # untyped, as all of theirs
    """Our classifier as torch-fidelity knows feature extractors: uint8 images (B, C, H, W) in."""

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


register_feature_extractor(OURS, ClassifierFeatures)


@dataclass(frozen=True)
class Extractor:
    """A network, and which of its layers each of some metrics asks for. `name` tells its features apart."""

    name: str
    network: FeatureExtractorBase
    layers: Mapping[str, str]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, C, H, W) uint8, on the network's device -> a tensor (B, D) for each layer, on the CPU."""
        if self.network.get_name() != OURS:
            images = images.expand(-1, 3, -1, -1)
        found: dict[str, Tensor] = self.network.convert_features_tuple_to_dict(self.network(images))
        return {layer: features.float().cpu() for layer, features in found.items()}


def extractors(metrics: list[str], classifier: TrainedClassifier | None, device: torch.device) -> dict[str, Extractor]:
    """What looks for each of `metrics`: our classifier, or the literature's networks where there is none.

    Raises `UserError` where their weights cannot be had.
    """
    found: dict[str, Extractor] = {}
    names = {metric: OURS if classifier else THEIRS[metric] for metric in metrics}
    for name in dict.fromkeys(names.values()):
        kind = FEATURE_EXTRACTORS_REGISTRY[name]
        own = [metric for metric in metrics if names[metric] == name]
        layers = {metric: kind.get_default_feature_layer_for_metric(SHORT.get(metric, metric)) for metric in own}
        wanted = list(dict.fromkeys(layers.values()))
        try:
            network = create_feature_extractor(name, wanted, cuda=False, verbose=False, classifier=classifier)
        except OSError as error:  # URLError is one
            raise UserError(
                f"features=inception: the weights of {name} are not in {torch.hub.get_dir()}/checkpoints and cannot be "
                "downloaded; put them there, or use features=classifier"
            ) from error
        key = f"classifier_{classifier.digest}" if classifier else name
        found |= dict.fromkeys(own, Extractor(key, network.to(device), layers))
    return found


def measured(metric: str, samples: Tensor, reference: Tensor, seed: int) -> dict[str, float]:
    """The figures of `metric` by the features of samples (n, D) and of the reference (m, D), unnamed yet.

    fid: fid. kid: kid and kid_std, over subsets. is: is and is_std, over splits. prc: precision and recall.
    """
    match metric:
        case "fid":
            return {"fid": _fid(samples, reference)}
        case "kid":
            size = min(KID_SUBSET, len(samples), len(reference))
            found = kid_features_to_metric(
                samples, reference, kid_subset_size=size, rng_seed=_short(seed), verbose=False
            )
            return {"kid": found["kernel_inception_distance_mean"], "kid_std": found["kernel_inception_distance_std"]}
        case "is":
            found = isc_features_to_metric(samples, splits=IS_SPLITS, rng_seed=_short(seed))
            return {"is": found["inception_score_mean"], "is_std": found["inception_score_std"]}
        case "prc":
            found = prc_features_to_metric(
                samples, reference, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
            )
            return {"precision": found["precision"], "recall": found["recall"]}
    raise ValueError(f"metric={metric}")


def named(figures: Mapping[str, float], features: str) -> dict[str, float]:
    """`figures` under the names that say what looked."""
    if features == "inception":
        return dict(figures)
    return {NAMES.get(name, f"{name}_classifier"): value for name, value in figures.items()}


def interval(samples: Tensor, reference: Tensor, seed: int) -> tuple[float, float]:
    """Between which the Fréchet distance of other such samples would lie, 95 times of 100: by the bootstrap.

    Drawing with replacement adds to the bias that the distance has at any n, the same on average, so what is added
    is taken off: the interval tells the spread at this n, and nothing of the bias.
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


def least_samples(metric: str, features: str) -> int:
    """Of how many samples `metric` is no longer much biased."""
    return ENOUGH[features] if metric == "fid" else {"is": 500 * IS_SPLITS, "prc": 1000}.get(metric, 0)


def _fid(samples: Tensor, reference: Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (samples, reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def _frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_root: Tensor) -> float:
    """The distance of two Gaussians, one by the root of its covariance, which is ten times as fast."""
    eigenvalues = torch.linalg.eigvalsh(other_root @ covariance @ other_root).clamp(min=0)
    traces = covariance.trace() + (other_root**2).sum()
    return ((mean - other_mean).square().sum() + traces - 2 * eigenvalues.sqrt().sum()).item()


def _covariance(features: Tensor) -> Tensor:
    return torch.cov(features.double().T)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def _short(seed: int) -> int:
    """For generators that take 32 bits."""
    return seed % 2**32
