"""What a terminal shows while a command works: a status line for work that takes seconds, and a bar of images."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ddpm_cli.distributed.launch import is_launch_rank_zero

ERASE_LINE = "\r\033[K"


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text` on a terminal until the block ends. Elsewhere nothing is shown."""
    shown = sys.stderr.isatty() and is_launch_rank_zero()
    if shown:
        print(f"{text} …", end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print(ERASE_LINE, end="", file=sys.stderr, flush=True)


class ImageBar(tqdm):  # type: ignore[type-arg]  # tqdm is generic in its stubs only
    """A progress bar of images that are made in batches. It is shown by rank 0 on a terminal, and in notebooks."""

    def __init__(self, total: int, what: str, leave: bool = False) -> None:
        from ddpm_cli.distributed import collectives  # imports torch

        super().__init__(total=total, desc=what, unit="image", leave=leave, disable=collectives.progress_bar_disabled())
        self.images, self.ranks = total, collectives.world_size()

    def reach(self, images: range, done: float = 1.0) -> None:
        """Move to the share `done` of this rank's batch `images`; move back if an earlier batch was given up."""
        at = images.start + int(len(images) * self.ranks * done)
        self.update(min(at, self.images) - self.n)
