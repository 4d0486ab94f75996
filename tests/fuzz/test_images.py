"""Mutated images and idx files: they are decoded to the requested shape or refused in one line."""

import gzip
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.data.test_sources import write_idx
from tests.fuzz.mutations import images, mutated
from tests.fuzz.reader import Reader

IMAGES = images()
FILES = [f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return the reader process. All tests share it, because torch takes seconds to import."""
    reader = Reader(tmp_path_factory.mktemp("reader") / "stderr")
    yield reader
    reader.stop()


@pytest.fixture(autouse=True)
def _stderr_is_empty(reader: Reader, request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that the image libraries print nothing on stderr.

    libtiff is an exception: it reports damage on stderr, and this can be disabled only from C.
    """
    before = reader.stderr.stat().st_size
    yield
    printed = reader.stderr.read_bytes()[before:].decode(errors="replace").splitlines()
    if "tiff" in request.node.name:
        printed = [line for line in printed if "Warning" in line or "Traceback" in line]
    assert not printed, printed


def assert_decoded_or_refused(answer: str, start: str) -> None:
    """Check that the answer is `decoded` or a message of one line that starts with `start`."""
    assert answer == "decoded" or (answer.startswith(start) and answer.splitlines() == [answer]), answer


@pytest.mark.parametrize("kind", IMAGES)
def test_mutated_images_are_decoded_or_refused(
    kind: str, full: bool, tmp_path: Path, reader: Reader, tally: Callable[[str], Callable]
) -> None:
    """Check files whose seed is their format and number, so that each one can be reproduced."""
    survived = tally("mutated images decoded or refused")
    names = sorted(IMAGES[kind])
    decoded = 0
    for number in range(340 if full else 34):
        rng = random.Random(f"{kind} {number}")
        name = names[number % len(names)]
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(mutated(IMAGES[kind][name], rng, IMAGES[kind][rng.choice(names)]))
        try:
            answer = reader.read("image", path)
            assert_decoded_or_refused(answer, f"image={path}: cannot be read as an image (")
        except AssertionError as error:
            raise AssertionError(f"{name}, {path}: {error}") from error
        decoded += answer == "decoded"
        path.unlink()
        survived()
    assert decoded > 0


@pytest.mark.parametrize("kind", IMAGES)
def test_valid_images_are_decoded(kind: str, tmp_path: Path, reader: Reader) -> None:
    """Check the files that the test above mutates. Only floats, whose range is unknown, are refused."""
    for name, content in IMAGES[kind].items():
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(content)
        assert ("floats" if name == "floats" else "decoded") in reader.read("image", path)


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
def test_mutated_idx_files_are_read_or_refused(
    gzipped: bool, full: bool, tmp_path: Path, reader: Reader, tally: Callable[[str], Callable]
) -> None:
    """Check files mutated before or after compression: 50 of each, or 500 with --full."""
    survived = tally("mutated idx files read or refused")
    write_idx(tmp_path / "valid", 5, gzipped=False)
    assert reader.read("idx", tmp_path / "valid") == "decoded"
    valid = {name: (tmp_path / "valid" / name).read_bytes() for name in FILES}
    for number in range(500 if full else 50):
        rng = random.Random(f"idx {gzipped} {number}")
        folder = tmp_path / str(number)
        write_idx(folder, 5, gzipped)
        for name in rng.choice([FILES[:1], FILES[1:], FILES]):
            content, other = valid[name], valid[rng.choice(FILES)]
            inside = rng.random() < 0.5
            if not gzipped:
                (folder / name).write_bytes(mutated(content, rng, other))
            elif inside:
                (folder / f"{name}.gz").write_bytes(gzip.compress(mutated(content, rng, other)))
            else:
                (folder / f"{name}.gz").write_bytes(mutated(gzip.compress(content, mtime=0), rng, gzip.compress(other)))
        try:
            assert_decoded_or_refused(reader.read("idx", folder), f"dataset.root={folder}: ")
        except AssertionError as error:
            raise AssertionError(f"{folder}: {error}") from error
        shutil.rmtree(folder)
        survived()
