"""A network as an ONNX file: forward(x, t[, y]) -> output, for a batch of any size."""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.errors import check
from ddpm_cli.files import amount, write
from ddpm_cli.sampling.build import network_of

LARGEST = 2**31 - 2**20
"""Bytes of weights: an ONNX file is a protocol buffer, which ends at 2 GiB."""
OPSET = 18
"""What onnxruntime 1.14 and later run."""


def inputs_of(weights: Weights, batch: int) -> dict[str, torch.Tensor]:
    """What the network takes, by name, of zeros: x (B, C, ...) float32, t (B,) int64, and y (B,) int64 where it is told
    classes. C is twice that of an example with self-conditioning, the estimate first.
    """
    channels, *rest = weights.config.dataset.shape
    if weights.config.model.self_condition:
        channels *= 2
    inputs = {"x": torch.zeros(batch, channels, *rest), "t": torch.zeros(batch, dtype=torch.long)}
    return inputs | ({"y": torch.zeros(batch, dtype=torch.long)} if weights.classes else {})


def write_onnx(path: Path, weights: Weights) -> None:
    """Write the network of `weights`. Raises `NoRoom`, and `UserError` where it is too large."""
    size = sum(tensor.nbytes for tensor in weights.tensors.values())
    check(size <= LARGEST, "format", f"onnx with {amount(size)} of weights", f"at most {amount(LARGEST)}")
    network = network_of(weights.config, weights.classes)
    network.load_state_dict(weights.tensors)
    inputs = inputs_of(weights, batch=2)  # a 1 is taken for a constant by some releases of the exporter
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of itself
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            program: Any = torch.onnx.export(
                network.eval().requires_grad_(False),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["output"],
                opset_version=OPSET,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                dynamo=True,
                verbose=False,
            )
        finally:
            logging.disable(level)
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    buffer = io.BytesIO()
    program.save(buffer)
    write(path, buffer.getvalue())
