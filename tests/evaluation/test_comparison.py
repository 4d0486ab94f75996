import logging

import pytest
import torch

from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation import classifier, comparison
from ddpm_cli.evaluation.comparison import SampleEvaluator
from ddpm_cli.evaluation.fidelity import statistics_of
from tests.conftest import composed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits() -> dict[str, Examples]:
    dataset = composed("dataset=digits").dataset
    return {name: load_examples(dataset, name == "train") for name in ("train", "test")}


@pytest.fixture
def evaluator(splits: dict[str, Examples], monkeypatch: pytest.MonkeyPatch) -> SampleEvaluator:
    """Return an evaluator whose classifier is trained for only a few steps, which suffices for comparisons."""
    monkeypatch.setattr(classifier, "MIN_STEPS", 30)
    monkeypatch.setattr(classifier, "EPOCHS", 0)
    return SampleEvaluator(splits, "test", ["fid", "kid", "is", "prc"], "classifier", CPU)


def test_distance_to_itself_is_zero(evaluator: SampleEvaluator, splits: dict[str, Examples]) -> None:
    found = evaluator.compare(splits["test"].values.split(100), 0)
    assert found.n == 297
    assert found.metrics["fd_classifier"] == pytest.approx(0, abs=1e-3)
    assert found.metrics["precision_classifier"] == found.metrics["recall_classifier"] == 1
    assert found.first.shape == (64, 1, 8, 8)
    torch.testing.assert_close(found.first, splits["test"].values[:64])


def test_comparing_does_not_move_the_classifier(
    evaluator: SampleEvaluator, splits: dict[str, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run compares at several milestones, with the classifier on the GPU all the time."""

    def moved(*args: object) -> None:
        raise AssertionError("the classifier was moved")

    monkeypatch.setattr(classifier.Classifier, "_apply", moved)
    evaluator.compare([splits["train"].values[:50]], 0)


def test_noise_is_farther_than_real_images(evaluator: SampleEvaluator, splits: dict[str, Examples]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (297, 1, 8, 8), dtype=torch.uint8, generator=generator)
    of_noise = evaluator.compare([noise], 0)
    of_real = evaluator.compare([splits["train"].values[:297]], 0)
    assert of_noise.metrics["fd_classifier"] > 10 * of_real.metrics["fd_classifier"]
    assert of_noise.floor == of_real.floor
    assert of_real.metrics["fd_classifier"] < 3 * of_real.floor["fd_classifier"]
    low, high = of_noise.intervals["fd_classifier"]
    assert low < of_noise.metrics["fd_classifier"] < high


def test_statistics_replace_the_reference_of_fid(
    evaluator: SampleEvaluator, splits: dict[str, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples' own statistics are at distance 0 of them, whatever the split contains."""
    samples = splits["train"].values[:200]
    features = evaluator.by_metric["fid"](samples)["features"]
    monkeypatch.setattr(evaluator, "statistics", statistics_of(features))
    found = evaluator.compare([samples], 0)
    assert found.metrics["fd_classifier"] == pytest.approx(0, abs=1e-3)
    assert found.floor["fd_classifier"] > 0.01
    with pytest.raises(UserError, match="reference: has 5 features, and classifier has"):  # before samples are drawn
        SampleEvaluator(splits, "test", ["fid"], "classifier", CPU, statistics_of(features[:, :5]))


def test_floor_uses_as_many_images_of_the_other_split(splits: dict[str, Examples], evaluator: SampleEvaluator) -> None:
    few = evaluator.compare([splits["train"].values[:50]], 0)
    assert few.floor_n == 50
    assert few.floor["fd_classifier"] > evaluator.compare([splits["train"].values[:297]], 0).floor["fd_classifier"]
    many = evaluator.compare([splits["train"].values.repeat(2, 1, 1, 1)], 0)
    assert (many.n, many.floor_n) == (3000, 1500)


def test_predicted_classes_are_counted(evaluator: SampleEvaluator, splits: dict[str, Examples]) -> None:
    counted = evaluator.compare([splits["test"].values[:100]], 0).classifier
    assert counted is not None
    assert sum(counted["classes"].values()) == 100
    assert list(counted["classes"]) == [str(i) for i in range(10)]
    assert 0.1 < counted["confidence"] < 1


def test_features_of_real_images_are_cached(
    evaluator: SampleEvaluator, splits: dict[str, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = splits["train"].values[:20]
    first = evaluator.compare([samples], 0)
    seen: list[int] = []
    real = comparison._extract_features
    monkeypatch.setattr(comparison, "_extract_features", lambda parts, *rest: seen.append(1) or real(parts, *rest))
    assert evaluator.compare([samples], 0).metrics == first.metrics
    assert len(seen) == 1  # only the samples


def test_warns_about_few_samples(
    evaluator: SampleEvaluator, splits: dict[str, Examples], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            evaluator.compare([splits["train"].values[:20]], 0)
    assert caplog.text.count("20 samples are few for fd_classifier") == 1
    assert "kid" not in caplog.text


def test_classifier_requires_labels(splits: dict[str, Examples]) -> None:
    bare = {name: Examples(examples.values) for name, examples in splits.items()}
    with pytest.raises(UserError, match="features=classifier: these data have no labels"):
        SampleEvaluator(bare, "test", ["fid"], "classifier", CPU)
