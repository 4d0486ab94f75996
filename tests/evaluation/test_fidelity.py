import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.utils import create_feature_extractor

from ddpm_cli.data.table import to_float
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation import fidelity
from ddpm_cli.evaluation.classifier import Classifier, TrainedClassifier
from ddpm_cli.evaluation.fidelity import (
    CLASSIFIER_EXTRACTOR,
    bootstrap_interval,
    compute_metric,
    extractors,
    frechet_distance,
    min_samples,
    read_statistics,
    rename_metrics,
    statistics_of,
)

CPU = torch.device("cpu")


def normal(n: int, shift: float = 0.0, scale: float = 1.0, features: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) * scale + shift


@pytest.fixture(scope="module")
def classifier() -> TrainedClassifier:
    torch.manual_seed(0)
    network = Classifier(1, 4).eval().requires_grad_(False)
    return TrainedClassifier(network, list("abcd"), 0.25, "none")


def test_distance_of_gaussians_matches_the_closed_form() -> None:
    """For means 0 and 2 and standard deviations 1 and 3 in D dimensions, it is D (2^2 + (3 - 1)^2)."""
    found = compute_metric("fid", normal(200_000), normal(200_000, 2.0, 3.0, seed=1), 0)["fid"]
    assert found == pytest.approx(3 * (4 + 4), rel=0.01)


def test_distance_to_imported_statistics(tmp_path: Path) -> None:
    """EDM stores mu and sigma, guided-diffusion also images; the distance to them is the one to the features."""
    samples, reference = normal(500), normal(600, 1.0, seed=1)
    mu, sigma = statistics_of(reference)
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez(
        tmp_path / "guided.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma
    )
    expected = compute_metric("fid", samples, reference, 0)["fid"]
    for name in ("edm.npz", "guided.npz"):
        assert frechet_distance(samples, read_statistics(str(tmp_path / name))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.zeros((3, 4))},
        {"mu": np.zeros(3, int), "sigma": np.eye(3)},
        {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
        {"mu": np.array([{}] * 3), "sigma": np.eye(3)},
    ],
    ids=["no sigma", "shapes", "integers", "nan", "pickle"],
)
def test_other_statistics_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(
        UserError, match=r"reference=.*x.npz: (must be an npz file with the arrays mu and sigma|mu must)"
    ):
        read_statistics(str(tmp_path / "x.npz"))


def test_kernel_distance_of_equal_distributions_is_zero() -> None:
    near = compute_metric("kid", normal(400), normal(400, seed=1), 0)["kid"]
    far = compute_metric("kid", normal(400), normal(400, 1.0, seed=1), 0)["kid"]
    assert abs(near) < 0.05 < 1 < far


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """Return the unbiased estimate of Binkowski et al. 2018, eq. 4, from all images."""

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        kernel = (x.double() @ y.double().T / x.shape[1] + 1) ** 3
        without = kernel.trace() if same else 0.0
        return ((kernel.sum() - without) / (len(x) * (len(y) - same))).item()

    return mean(one, one, True) + mean(other, other, True) - 2 * mean(one, other, False)


def test_spread_of_the_kernel_distance_is_its_standard_error() -> None:
    """Compare with the distances of other samples, for fewer images than two of the largest subsets."""
    pairs = [(normal(200, 0.5, seed=seed), normal(200, seed=1000 + seed)) for seed in range(200)]
    distances = [kernel_distance(*pair) for pair in pairs]
    for pair, distance in zip(pairs[:3], distances, strict=False):
        found = compute_metric("kid", *pair, 0)
        assert found["kid"] == pytest.approx(distance, rel=0.1)
        assert found["kid_std"] == pytest.approx(torch.tensor(distances).std().item(), rel=0.5)


def test_inception_score_of_confident_uniform_predictions_is_the_number_of_classes() -> None:
    logits = 100 * torch.eye(5).repeat(200, 1)
    # The classes are not exactly uniform in each of its splits.
    assert compute_metric("is", logits, logits, 0)["is"] == pytest.approx(5, rel=0.05)
    assert compute_metric("is", torch.zeros(1000, 5), logits, 0)["is"] == pytest.approx(1)


def test_precision_and_recall_distinguish_missing_from_wrong_samples() -> None:
    two = torch.cat([normal(200), normal(200, 100.0, seed=1)])
    one = compute_metric("prc", normal(400, seed=2), two, 0)
    assert one["precision"] > 0.9
    assert 0.4 < one["recall"] < 0.6  # no samples are near half of the real images
    wrong = compute_metric("prc", two, normal(400, seed=2), 0)
    assert 0.4 < wrong["precision"] < 0.6
    assert wrong["recall"] > 0.9


def test_interval_contains_the_distance_and_shrinks_with_n() -> None:
    reference = normal(5000, seed=9)
    widths = []
    for n in (50, 1000):
        samples = normal(n, 0.5)
        low, high = bootstrap_interval(samples, statistics_of(reference), 0)
        assert low < compute_metric("fid", samples, reference, 0)["fid"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_interval_has_the_width_of_the_sampling_distribution() -> None:
    reference = normal(5000, seed=99)
    low, high = bootstrap_interval(normal(300, 0.5), statistics_of(reference), 0)
    others = [compute_metric("fid", normal(300, 0.5, seed=seed), reference, 0)["fid"] for seed in range(1, 41)]
    middle = torch.tensor(others).mean().item()
    spread = sorted(others)[37] - sorted(others)[2]
    assert high - low == pytest.approx(spread, rel=0.5)
    assert low - spread < middle < high + spread


def test_interval_covers_the_mean_and_not_the_next_distance() -> None:
    """It covers the mean distance for this n nearly 95 times of 100, the distance of other samples less often."""
    reference = statistics_of(normal(5000, seed=99))
    samples = [normal(100, 0.5, seed=seed) for seed in range(200)]
    distances = torch.tensor([frechet_distance(one, reference) for one in samples])
    ends = torch.tensor([bootstrap_interval(one, reference, seed) for seed, one in enumerate(samples)])
    low, high = ends.T

    def coverage(value: Tensor, wider: float = 1.0) -> float:
        margin = (high - low) * (wider - 1) / 2
        return ((low - margin < value) & (value < high + margin)).float().mean().item()

    assert 0.86 < coverage(distances.mean()) < 0.97
    assert 0.72 < coverage(distances.roll(1)) < 0.86
    assert 0.86 < coverage(distances.roll(1), math.sqrt(2)) < 0.97


def test_metrics_of_the_classifier_are_renamed() -> None:
    metrics = {"fid": 1.0, "kid": 2.0, "kid_std": 0.1, "is": 3.0, "is_std": 0.2, "precision": 0.5, "recall": 0.4}
    assert rename_metrics(metrics, "inception") == metrics
    assert rename_metrics(metrics, "classifier") == {
        "fd_classifier": 1.0,
        "kd_classifier": 2.0,
        "kd_classifier_std": 0.1,
        "is_classifier": 3.0,
        "is_classifier_std": 0.2,
        "precision_classifier": 0.5,
        "recall_classifier": 0.4,
    }


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def test_metrics_equal_those_of_calculate_metrics(classifier: TrainedClassifier, monkeypatch: Any) -> None:
    """Compare with the public function of torch-fidelity, which creates the extractor itself."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(256, (60, 1, 12, 12), generator=generator, dtype=torch.uint8)
    two = torch.randint(200, (80, 1, 12, 12), generator=generator, dtype=torch.uint8)
    theirs = calculate_metrics(
        input1=Images(one), input2=Images(two), cuda=False, batch_size=64, fid=True, kid=True, isc=True, prc=True,
        kid_subset_size=30, feature_extractor=CLASSIFIER_EXTRACTOR, classifier=classifier, cache=False, verbose=False,
        save_cpu_ram=True, rng_seed=5,
    )  # fmt: skip
    found = extractors(["fid", "kid", "is", "prc"], classifier, CPU)
    ours: dict[str, float] = {}
    for metric, extractor in found.items():
        layer = extractor.layers[metric]
        ours |= compute_metric(metric, extractor(one)[layer], extractor(two)[layer], 5)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])


def test_features_of_the_classifier_are_the_input_of_the_last_layer(classifier: TrainedClassifier) -> None:
    extractor = extractors(["fid", "is"], classifier, CPU)["fid"]
    images = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8)
    seen = extractor(images)
    weight, bias = classifier.network.head.weight, classifier.network.head.bias
    torch.testing.assert_close(seen["features"] @ weight.T + bias, seen["logits"])
    torch.testing.assert_close(seen["logits"], classifier.network(to_float(images)))


def test_inception_receives_gray_images_in_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights replace the ones of inception, which would be downloaded."""
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    found = extractors(["fid", "is"], None, CPU)
    assert found["fid"] is found["is"]
    torch.manual_seed(0)
    seen = found["fid"](torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8))
    assert {layer: tuple(features.shape) for layer, features in seen.items()} == {
        "2048": (2, 2048),
        "logits_unbiased": (2, 1008),
    }
    assert all(math.isfinite(features.sum()) for features in seen.values())


@pytest.mark.parametrize("metric", ["fid", "prc"])
def test_missing_weights_error_names_a_solution(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch_fidelity.feature_extractor_vgg16.torchvision_load_pretrained_vgg16", refuse)
    with pytest.raises(UserError, match=r"^features=inception: the weights of .* or use features=classifier$"):
        extractors([metric], None, CPU)


def test_min_samples() -> None:
    assert min_samples("fid", "inception") == 10_000
    assert min_samples("fid", "classifier") == 20 * fidelity.FEATURES
    assert min_samples("kid", "inception") == 0  # it has no bias


def test_torch_fidelity_can_create_the_extractor(classifier: TrainedClassifier) -> None:
    made = create_feature_extractor(CLASSIFIER_EXTRACTOR, ["logits"], cuda=False, verbose=False, classifier=classifier)
    (logits,) = made(torch.zeros(2, 1, 9, 9, dtype=torch.uint8))
    assert logits.shape == (2, 4)
