from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples, to_float
from ddpm_cli.evaluation import classifier as module
from ddpm_cli.evaluation.classifier import FEATURES, Classifier, TrainedClassifier, load_or_train_classifier
from tests.conftest import composed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits() -> tuple[Examples, Examples]:
    dataset = composed("dataset=digits").dataset
    return load_examples(dataset, train=True), load_examples(dataset, train=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture(scope="module")
def trained(splits: tuple[Examples, Examples], cache: Path) -> TrainedClassifier:
    return load_or_train_classifier(*splits, cache, CPU)


def test_classifier_recognizes_the_digits(trained: TrainedClassifier, splits: tuple[Examples, Examples]) -> None:
    test = splits[1]
    found = trained.network(to_float(test.values)).argmax(1)
    accuracy = (found == test.labels).float().mean().item()
    assert accuracy > 0.95
    assert trained.accuracy == pytest.approx(accuracy)


def test_classifier_is_trained_once(
    trained: TrainedClassifier, splits: tuple[Examples, Examples], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_train_classifier", lambda *_: pytest.fail("trained again"))
    again = load_or_train_classifier(*splits, cache, CPU)
    assert (again.digest, again.accuracy) == (trained.digest, trained.accuracy)
    for name, tensor in trained.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_other_data_and_versions_train_another_classifier(
    splits: tuple[Examples, Examples], trained: TrainedClassifier, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_STEPS", 2)
    monkeypatch.setattr(module, "EPOCHS", 0)
    others = replace(splits[0], classes=[*"abcdefghij"])
    assert load_or_train_classifier(others, splits[1], cache, CPU).digest != trained.digest
    monkeypatch.setattr(module, "VERSION", 0)
    assert load_or_train_classifier(*splits, cache, CPU).digest != trained.digest


def test_training_is_reproducible_and_keeps_the_global_generator(
    splits: tuple[Examples, Examples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_STEPS", 3)
    monkeypatch.setattr(module, "EPOCHS", 0)
    torch.manual_seed(1)
    one = load_or_train_classifier(*splits, tmp_path / "one", CPU)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.rand(1), drawn, rtol=0, atol=0)
    torch.manual_seed(2)
    two = load_or_train_classifier(*splits, tmp_path / "two", CPU)
    assert one.digest == two.digest


def test_accuracy_is_that_of_the_test_split_that_is_given(
    trained: TrainedClassifier, splits: tuple[Examples, Examples], cache: Path
) -> None:
    """With labels that are all wrong, right and wrong predictions change places."""
    train, test = splits
    found = trained.network(to_float(test.values)).argmax(1)
    wrong = replace(test, labels=(found + 1) % 10)
    assert load_or_train_classifier(train, wrong, cache, CPU).accuracy == 0
    right = replace(test, values=test.values[:50], labels=found[:50])
    assert load_or_train_classifier(train, right, cache, CPU).accuracy == 1
    assert load_or_train_classifier(*splits, cache, CPU).accuracy == trained.accuracy


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 9, 31), (3, 64, 48), (1, 200, 40)])
def test_image_sizes(shape: tuple[int, int, int]) -> None:
    network = Classifier(shape[0], 3).eval()
    assert network.features(torch.zeros(2, *shape)).shape == (2, FEATURES)
    assert network(torch.zeros(2, *shape)).shape == (2, 3)
