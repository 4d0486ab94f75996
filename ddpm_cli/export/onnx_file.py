"""Export a network as an ONNX file: forward(x, t[, y]) -> output, for any batch size."""

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
"""Maximum bytes of weights. An ONNX file is a protocol buffer, which is limited to 2 GiB."""
OPSET = 18
"""Supported by onnxruntime 1.14 and later."""


def inputs_of(weights: Weights, batch: int) -> dict[str, torch.Tensor]:
    """Return example inputs of zeros by name: x (B, C, ...) float32, t (B,) int64 and, with classes, y (B,) int64.

    With self-conditioning, C is twice that of an example, and the estimate comes first.
    """
    channels, *rest = weights.config.dataset.shape
    if weights.config.model.self_condition:
        channels *= 2
    inputs = {"x": torch.zeros(batch, channels, *rest), "t": torch.zeros(batch, dtype=torch.long)}
    return inputs | ({"y": torch.zeros(batch, dtype=torch.long)} if weights.classes else {})


def write_onnx(path: Path, weights: Weights) -> None:
    """Write the network of `weights` to `path`.

    Raises `UserError` if it is too large for the format, and `NoRoom` if the disk is full.
    """
    size = sum(tensor.nbytes for tensor in weights.tensors.values())
    check(size <= LARGEST, "format", f"onnx with {amount(size)} of weights", f"at most {amount(LARGEST)}")
    network = network_of(weights.config, weights.classes)
    network.load_state_dict(weights.tensors)
    inputs = inputs_of(weights, batch=2)  # some releases of the exporter treat a batch size of 1 as a constant
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporter's own code
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
        node.metadata_props.clear()  # stack traces, which contain local paths
    buffer = io.BytesIO()
    program.save(buffer)
    write(path, buffer.getvalue())
