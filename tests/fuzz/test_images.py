"""Damaged images and idx files: an array of the size asked for, or one line; nothing else, whatever is in them."""

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
    """What reads the files in a process of its own; one for all tests, for torch takes seconds to start."""
    reader = Reader(tmp_path_factory.mktemp("reader") / "stderr")
    yield reader
    reader.stop()


@pytest.fixture(autouse=True)
def _nothing_said(reader: Reader, request: pytest.FixtureRequest) -> Iterator[None]:
    """A command says one line where it refuses a file, and the libraries that read it are silent.

    All but libtiff, which writes of damage to stderr and can be told not to only from C.
    """
    before = reader.noise.stat().st_size
    yield
    said = reader.noise.read_bytes()[before:].decode(errors="replace").splitlines()
    if "tiff" in request.node.name:
        said = [line for line in said if "Warning" in line or "Traceback" in line]
    assert not said, said


def judge(answer: str, start: str) -> None:
    """Raise `AssertionError` for an answer that is neither an array nor one line."""
    assert answer == "decoded" or (answer.startswith(start) and answer.splitlines() == [answer]), answer


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, full: bool, tmp_path: Path, reader: Reader, tally: Callable[[str], Callable]) -> None:
    """A file is known again by its format and number: the seed is made of both."""
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
            judge(answer, f"image={path}: cannot be read as an image (")
        except AssertionError as error:
            raise AssertionError(f"{name}, {path}: {error}") from error
        decoded += answer == "decoded"
        path.unlink()
        survived()
    assert decoded > 0


@pytest.mark.parametrize("kind", IMAGES)
def test_valid_images_are_decoded(kind: str, tmp_path: Path, reader: Reader) -> None:
    """Else the test above would mutate what is refused anyway; pixels of unknown range are."""
    for name, content in IMAGES[kind].items():
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(content)
        assert ("floats" if name == "floats" else "decoded") in reader.read("image", path)


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
def test_idx_files(gzipped: bool, full: bool, tmp_path: Path, reader: Reader, tally: Callable[[str], Callable]) -> None:
    """Mutated before or after they are compressed; 500 of each with --full, 50 without."""
    survived = tally("mutated idx files read or refused")
    write_idx(tmp_path / "sound", 5, gzipped=False)
    assert reader.read("idx", tmp_path / "sound") == "decoded"
    sound = {name: (tmp_path / "sound" / name).read_bytes() for name in FILES}
    for number in range(500 if full else 50):
        rng = random.Random(f"idx {gzipped} {number}")
        folder = tmp_path / str(number)
        write_idx(folder, 5, gzipped)
        for name in rng.choice([FILES[:1], FILES[1:], FILES]):
            content, other = sound[name], sound[rng.choice(FILES)]
            inside = rng.random() < 0.5
            if not gzipped:
                (folder / name).write_bytes(mutated(content, rng, other))
            elif inside:
                (folder / f"{name}.gz").write_bytes(gzip.compress(mutated(content, rng, other)))
            else:
                (folder / f"{name}.gz").write_bytes(mutated(gzip.compress(content, mtime=0), rng, gzip.compress(other)))
        try:
            judge(reader.read("idx", folder), f"dataset.root={folder}: ")
        except AssertionError as error:
            raise AssertionError(f"{folder}: {error}") from error
        shutil.rmtree(folder)
        survived()
