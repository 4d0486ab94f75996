"""The precision that ddpm-evaluate draws samples in."""

import pytest
import torch

from ddpm_cli.distributed import devices
from ddpm_cli.evaluation import evaluate
from tests.conftest import composed


@pytest.mark.parametrize(
    ("precision", "n", "device", "used"),
    [
        ("null", 10_000, "cuda", "bf16"),
        ("null", 9_999, "cuda", "fp32"),
        ("null", 10_000, "cpu", "fp32"),
        ("auto", 1, "cuda", "bf16"),
        ("fp32_strict", 10_000, "cuda", "fp32_strict"),
    ],
)
def test_many_samples_are_drawn_in_bf16_on_a_gpu(
    precision: str, n: int, device: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_has_bf16", lambda device: True)
    config = composed("ckpt=run", f"precision={precision}", command="evaluate")
    assert evaluate._precision_of_samples(config, n, torch.device(device)) == used
