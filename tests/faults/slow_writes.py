"""Run ddpm-train with slow writes of checkpoints, so that a test can interrupt them."""

import time
from typing import Any, BinaryIO

import torch

from ddpm_cli.cli import train

PAUSE = 0.02


class SlowStream:
    """A binary file whose writes are split in two, with a pause in between."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        half = len(view) // 2
        self.stream.write(view[:half])
        self.stream.flush()
        time.sleep(PAUSE / 10)
        self.stream.write(view[half:])
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main() -> None:
    save = torch.save
    torch.save = lambda state, stream: save(state, SlowStream(stream))  # type: ignore[assignment]
    train.main()
