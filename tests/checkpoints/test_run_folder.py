"""Creating, claiming and locking run folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_cli.checkpoints.run_folder import LOCK, NOTES, OURS, RunFolder, claimed, locked, new_folder, reopened
from ddpm_cli.errors import UserError


def raises_user_error(message: str) -> pytest.RaisesExc:
    return pytest.raises(UserError, match=message)


def test_new_folder_must_be_empty(tmp_path: Path) -> None:
    new_folder(tmp_path / "a" / "b")
    new_folder(tmp_path / "a" / "b")
    with raises_user_error("already contains files"):
        new_folder(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with raises_user_error("cannot be created"):
        new_folder(tmp_path / "file" / "b")


def test_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    with claimed(tmp_path):
        with raises_user_error("process .* is running there"), reopened("resume", tmp_path):
            pass
        with raises_user_error("process .* is running there"), claimed(tmp_path):
            pass
    with reopened("resume", tmp_path):
        pass


def test_crash_leaves_no_lock(tmp_path: Path) -> None:
    crash = (
        "import os, pathlib\nfrom ddpm_cli.checkpoints.run_folder import claimed\n"
        f"with claimed(pathlib.Path({str(tmp_path)!r})): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", crash], check=False).returncode == 9
    assert (tmp_path / LOCK).exists()
    with locked("out", tmp_path):
        pass


def test_folder_without_a_checkpoint_can_be_claimed_again(tmp_path: Path) -> None:
    with claimed(tmp_path):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / ".step_00000000.pt.123.tmp").write_text("partial")
    with claimed(tmp_path):
        assert not list((tmp_path / "checkpoints").iterdir())
        (tmp_path / "checkpoints" / "step_00000000.pt").write_text("complete")
    with raises_user_error(f"already contains a run; resume={tmp_path} continues"), claimed(tmp_path):
        pass


@pytest.mark.parametrize("name", ["thesis.txt", "metrics.csv", f"{NOTES}/config.yaml", "checkpoints/best.pt"])
def test_folders_with_other_files_are_not_touched(tmp_path: Path, name: str) -> None:
    file = tmp_path / "foreign" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with raises_user_error("already contains"), claimed(tmp_path / "foreign"):
        pass
    assert [path for path in (tmp_path / "foreign").rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with raises_user_error(f"its {name} is a symbolic link"), reopened("resume", tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_read_only_folder(tmp_path: Path) -> None:
    with raises_user_error("cannot be written to"), locked("resume", tmp_path / "missing"):
        pass


def test_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with claimed(tmp_path):
        assert "the file system has no locks" in caplog.text


def test_run_folder_of_a_checkpoint(tmp_path: Path) -> None:
    assert RunFolder.of(tmp_path / "run/checkpoints/last.pt") == RunFolder(tmp_path / "run")
    assert RunFolder.of(tmp_path / "run/elsewhere/last.pt") is None
