import errno
import os
from pathlib import Path

import pytest

from ddpm_cli.files import NoRoom, amount, atomic, remove_partials, write


def test_file_is_written_atomically(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.txt", 4) as partial:
        partial.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic(tmp_path / "a.txt", 4) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("wrapped", [False, True])
def test_full_disk_is_one_line(tmp_path: Path, number: int, wrapped: bool) -> None:
    (tmp_path / "a.txt").write_text("old")

    def write() -> None:
        try:
            raise OSError(number, "full")
        except OSError:
            if wrapped:  # as torch does: it raises another error while handling the first
                raise RuntimeError("unexpected pos 832 vs 726")  # noqa: B904
            raise

    with pytest.raises(NoRoom) as caught, atomic(tmp_path / "a.txt", 3 * 2**20):
        write()
    assert str(caught.value) == (f"{tmp_path}/a.txt: no room on the disk for this file, which needs 3.0 MiB; make some")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"), (2**42, "4096.0 GiB")],
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text


def test_partial_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (".a.png.12.tmp", "checkpoints/.b.pt.7.tmp", "kept.tmp", ".kept"):
        (tmp_path / name).write_text("")
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".kept", "checkpoints", "kept.tmp"]


def test_a_file_is_flushed_to_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsync before the rename, a power failure could leave the new name with no content."""
    path, flushed = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(path.exists()))
    write(path, b"content")
    assert flushed == [False]
    assert path.read_bytes() == b"content"
