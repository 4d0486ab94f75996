"""Read files in a separate process, so that a test survives crashes and hangs of the decoder."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT = 10.0
"""Time limit for a file, in seconds."""
STARTUP = 120.0
MEMORY = 3 * 2**30
"""Memory limit for a file, in bytes: a few copies of the 89 million pixels that are allowed."""
HEIGHT, WIDTH = 8, 12


class Reader:
    """A process that reads files. `read` raises `AssertionError` if it dies, hangs or uses too much memory."""

    def __init__(self, stderr: Path) -> None:
        """Start the process, whose stderr is appended to the file `stderr`."""
        self.stderr = stderr
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(self.stderr)), daemon=True)
        self._process.start()
        theirs.close()
        assert self._ours.poll(STARTUP), "the reading process does not start"
        self._ours.recv()

    def read(self, kind: str, path: Path) -> str:
        """Return `decoded`, or the message of the `UserError`."""
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
        """Kill the process."""
        self._process.join(0.5)  # keeps the exit status if it has already ended
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(connection: Connection, stderr: str) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)  # C libraries bypass sys.stderr
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kinds: dict[str, Callable[[str], str]] = {"image": _read_image, "idx": _read_idx}
    connection.send("ready")
    before = _peak_memory()
    while True:
        try:
            kind, path = connection.recv()
        except EOFError:
            return
        connection.send((kinds[kind](path), _peak_memory() - before))


def _peak_memory() -> int:
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
