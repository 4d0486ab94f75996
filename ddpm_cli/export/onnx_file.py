"""Export a network to ONNX: forward(x, t[, y]) -> output, with a dynamic batch size."""

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

MAX_WEIGHT_BYTES = 2**31 - 2**20
"""Maximum size of the weights in bytes. An ONNX file is a protocol buffer, which is limited to 2 GiB."""
OPSET = 18
"""Version of the ONNX operators, supported by onnxruntime 1.14 and later."""


def inputs_of(weights: Weights, batch: int) -> dict[str, torch.Tensor]:
    """Return inputs of zeros by name: x (B, C, ...) float32, t (B,) int64 and, with classes, y (B,) int64.

    With self-conditioning, C is twice the number of channels of an image: the previous estimate of x0 comes first, then
    x_t.
    """
    channels, *rest = weights.config.dataset.shape
    if weights.config.model.self_condition:
        channels *= 2
    time = torch.float32 if weights.config.prediction == "edm" else torch.long
    inputs = {"x": torch.zeros(batch, channels, *rest), "t": torch.zeros(batch, dtype=time)}
    return inputs | ({"y": torch.zeros(batch, dtype=torch.long)} if weights.classes else {})


def write_onnx(path: Path, weights: Weights) -> None:
    """Write the network of `weights` to `path`.

    Raises `UserError` if the weights exceed 2 GiB, and `NoRoom` if the disk is full.
    """
    size = sum(tensor.nbytes for tensor in weights.tensors.values())
    check(
        size <= MAX_WEIGHT_BYTES,
        "format",
        f"onnx with {amount(size)} of weights",
        f"at most {amount(MAX_WEIGHT_BYTES)}",
    )
    network = network_of(weights.config, weights.classes)
    network.load_state_dict(weights.tensors)
    inputs = inputs_of(weights, batch=2)  # some releases of the exporter specialise on a batch size of 1
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised within the exporter
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
        node.metadata_props.clear()  # stack traces that contain local paths
    buffer = io.BytesIO()
    program.save(buffer)
    write(path, buffer.getvalue())
