"""The precision that ddpm-evaluate draws samples in."""

import pytest
import torch

from ddpm_cli.evaluation import evaluate
from tests.conftest import composed


@pytest.mark.parametrize(
    ("overrides", "dataset", "device", "bf16"),
    [
        (["n=10000"], "fashion_mnist", "cuda", True),
        (["n=9999"], "cifar10", "cuda", False),
        ([], "fashion_mnist", "cuda", False),  # 2000 samples
        ([], "cifar10", "cuda", True),  # 10,000 samples
        (["n=10000"], "cifar10", "cpu", False),
        (["n=10000", "metrics=[nll]"], "cifar10", "cuda", False),
    ],
)
def test_many_samples_are_drawn_in_bf16_on_a_gpu(
    overrides: list[str], dataset: str, device: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "resolve_precision", lambda name, device: torch.bfloat16)
    config = composed("ckpt=run", *overrides, command="evaluate")
    data = composed(f"dataset={dataset}").dataset
    assert evaluate._bf16_by_default(config, data, torch.device(device)) == bf16
