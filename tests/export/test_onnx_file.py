"""Compare exported networks with PyTorch, using onnxruntime, for several batch sizes."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.export.onnx_file import write_onnx
from ddpm_cli.sampling.build import network_of
from tests.conftest import TINY, TINY_POINTS, composed

PLAIN = [*TINY[:1], *TINY[4:]]
"""`TINY` without the keys of its network."""
LEVELS = ["model.width=8", "model.multipliers=[1,2]", "model.attention=[none,full]", "model.blocks=1"]
LEARNED = ["model.self_condition=true", "variance=learned_range", "loss=hybrid"]
SMALL_DIT = ["model.width=16", "model.heads=2", "model.depth=2"]
KINDS = {
    "unet with classes": ([*TINY, "model.attention=[none,linear]", "conditioning=class"], ["0", "1", "2"]),
    "ddpm_unet": ([*PLAIN, "model=ddpm_cifar10", *LEVELS, "model.groups=4", *LEARNED], []),
    "ddpmpp with classes": ([*PLAIN, "model=ddpmpp", *LEVELS, *LEARNED, "conditioning=class"], ["0", "1", "2"]),
    "dit": ([*PLAIN, "model=dit_s", *SMALL_DIT, *LEARNED], []),
    "rotary dit with classes": ([*PLAIN, "model=dit_tiny", *SMALL_DIT, "conditioning=class"], ["0", "1", "2"]),
    "points": (TINY_POINTS, []),
    "preconditioned points": ([*TINY_POINTS, "schedule=edm", "prediction=edm"], []),
}


@pytest.mark.parametrize(
    ("overrides", "classes"),
    [pytest.param(*KINDS[kind], id=kind, marks=[] if "points" in kind else pytest.mark.slow) for kind in KINDS],
)
@torch.no_grad()
def test_onnxruntime_gives_the_output_of_torch(overrides: list[str], classes: list[str], tmp_path: Path) -> None:
    config = composed(*overrides)
    torch.manual_seed(0)
    network = network_of(config, classes).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    write_onnx(tmp_path / "model.onnx", Weights(config, classes, 1, "ema", dict(network.state_dict())))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        channels, *rest = config.dataset.shape
        x = torch.randn(batch, channels * (2 if config.model.self_condition else 1), *rest)
        t = torch.randn(batch) if config.prediction == "edm" else torch.randint(0, 50, (batch,))
        inputs = {"x": x, "t": t}
        if classes:
            inputs["y"] = torch.randint(0, len(classes) + 1, (batch,))
        (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        expected = network(*inputs.values())
        assert expected.std() > 0.01
        assert torch.allclose(torch.from_numpy(output), expected, atol=1e-4)
    text = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in text  # no local paths
    assert b"ddpm_cli/" not in text
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
