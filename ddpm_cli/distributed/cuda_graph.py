"""Functions of tensors, such as a training step, captured as CUDA graphs and replayed with one launch."""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WARM_UP_CALLS = 3
"""Eager calls before the capture: they create the optimizer's state and let cuDNN and cuBLAS allocate workspaces."""

Inputs = Sequence[Tensor | None]
Outputs = tuple[Tensor, ...]


class _Capture(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    outputs: Outputs


class CudaGraphs:
    """Run a function of tensors eagerly a few times, then capture it as a CUDA graph and replay that.

    Launching the hundreds of kernels of a network one by one takes the host longer than a GPU needs to execute them;
    replaying a graph takes one call. The function must not make the host wait for the device, and must keep its state
    in tensors that it changes in place.

    Args:
        function: called as `function(variant, *inputs)`; returns a tuple of tensors. All calls with the same
            `variant` must have inputs of the same shapes.
    """

    def __init__(self, function: Callable[..., Outputs]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream()
        self._calls: dict[Hashable, int] = {}
        self._captures: dict[Hashable, _Capture] = {}
        self._pool: Any = None
        self._enabled = True

    def __call__(self, variant: Hashable, inputs: Inputs) -> Outputs:
        """Return `function(variant, *inputs)`. One graph is captured for each `variant`."""
        capture = self._captures.get(variant)
        if capture is None:
            calls = self._calls[variant] = self._calls.get(variant, 0) + 1
            if not self._enabled or calls <= WARM_UP_CALLS:
                return self._run_eagerly(variant, inputs)
            capture = self._try_to_capture(variant, inputs)
            if capture is None:
                return self._run_eagerly(variant, inputs)
        for static, given in zip(capture.inputs, inputs, strict=True):
            if static is not None and given is not None:
                static.copy_(given)
        capture.graph.replay()
        return tuple(output.clone() for output in capture.outputs)  # the next replay overwrites them

    def _run_eagerly(self, variant: Hashable, inputs: Inputs) -> Outputs:
        """Call the function on the stream that the capture will use, as autograd remembers streams."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(variant, *inputs)
        current.wait_stream(self._stream)
        for tensor in (*inputs, *outputs):
            if tensor is not None:
                tensor.record_stream(self._stream)
                tensor.record_stream(current)
        return outputs

    def _try_to_capture(self, variant: Hashable, inputs: Inputs) -> _Capture | None:
        """Capture the function without executing it. Log a warning and return None if CUDA refuses."""
        static = [None if tensor is None else tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, for example a logger's, may call CUDA during the capture.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = self._function(variant, *static)
        except RuntimeError as error:
            self._enabled = False
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("running without CUDA graphs, which is slower: %s", reason)
            return None
        self._pool = graph.pool()
        self._captures[variant] = _Capture(graph, static, outputs)
        return self._captures[variant]
