"""A process that reads files for a test, which outlives it whatever is in them."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT = 10.0
"""Seconds that a file may take."""
STARTUP = 120.0
MEMORY = 3 * 2**30
"""Bytes that a file may take: a few copies of the 89 million pixels that are allowed."""
HEIGHT, WIDTH = 8, 12


class Reader:
    """`Reader().read(kind, path)`: what came of it; raises `AssertionError` where the process died or hung."""

    def __init__(self, noise: Path) -> None:
        """`noise`: the file that what the process says on stderr goes to."""
        self.noise = noise
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(self.noise)), daemon=True)
        self._process.start()
        theirs.close()
        assert self._ours.poll(STARTUP), "the process that reads does not start"
        self._ours.recv()

    def read(self, kind: str, path: Path) -> str:
        """`decoded`, or the message of the `UserError`."""
        self._ours.send((kind, str(path)))
        try:
            assert self._ours.poll(LIMIT), f"took more than {LIMIT} s"
            answer, taken = self._ours.recv()
        except (AssertionError, EOFError, ConnectionResetError) as error:
            self.stop()
            died = f"ended the process: {self._process.exitcode}"
            self._start()
            raise AssertionError(str(error) or died) from None
        assert taken <= MEMORY, f"took {taken / 2**30:.1f} GiB"
        return str(answer)

    def stop(self) -> None:
        """End the process."""
        self._process.join(0.5)  # to know how it ended by itself
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(connection: Connection, noise: str) -> None:
    os.dup2(os.open(noise, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)  # C libraries write there past sys.stderr
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kinds: dict[str, Callable[[str], str]] = {"image": _read_image, "idx": _read_idx}
    connection.send("ready")
    before = _most_memory()
    while True:
        try:
            kind, path = connection.recv()
        except EOFError:
            return
        connection.send((kinds[kind](path), _most_memory() - before))


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read_image(path: str) -> str:
    import torch

    from ddpm_cli.data.user_images import read_file
    from ddpm_cli.errors import UserError

    channels = 1 + 2 * (len(path) % 2)
    try:
        image = read_file("image", path, HEIGHT, WIDTH, channels)
    except UserError as error:
        return str(error)
    except BaseException as error:
        return f"raised {error!r}"
    ok = image.shape == (channels, HEIGHT, WIDTH) and image.dtype == torch.uint8
    return "decoded" if ok else f"decoded to {image.dtype} {tuple(image.shape)}"


def _read_idx(path: str) -> str:
    import torch

    from ddpm_cli.config import FashionMnist
    from ddpm_cli.data.sources import load_examples
    from ddpm_cli.errors import UserError

    try:
        examples = load_examples(FashionMnist(root=path, image_size=28, channels=1, flip=False), train=True)
    except UserError as error:
        return str(error)
    except BaseException as error:
        return f"raised {error!r}"
    values, labels = examples.values, examples.labels
    ok = values.shape[1:] == (1, 28, 28) and values.dtype == torch.uint8 and len(values) > 0
    ok = ok and labels is not None and labels.shape == (len(values),) and labels.dtype == torch.int64
    if ok and labels is not None and labels.max() >= len(examples.classes):
        return f"a label of {labels.max()} among {len(examples.classes)} classes"
    return "decoded" if ok else f"decoded to {values.dtype} {tuple(values.shape)}"
