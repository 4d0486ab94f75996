import csv
import errno
from pathlib import Path

import pytest

from ddpm_cli.files import NoRoom
from ddpm_cli.tracking.metrics_csv import COLUMNS, Metrics


def row_of(step: int, epoch: float, loss: float) -> dict[str, float]:
    """Return a row of a dataset of 16 examples."""
    return dict.fromkeys(COLUMNS, 1.0) | {"step": step, "images": 16 * epoch, "epoch": epoch, "loss": loss}


def with_rows(folder: Path, rows: list[tuple[int, float, float]]) -> Metrics:
    """Return metrics with the rows (step, epoch, loss)."""
    metrics = Metrics(folder)
    for step, epoch, loss in rows:
        metrics.append(row_of(step, epoch, loss))
    return metrics


def test_epoch_means(tmp_path: Path) -> None:
    rows = [(2, 0.5, 4.0), (4, 1.0, 2.0), (6, 1.5, 1.0), (8, 2.0, 0.5)]
    assert with_rows(tmp_path, rows).epochs() == {4: 3.0, 8: 0.75}


def test_rows_are_weighted_by_their_steps(tmp_path: Path) -> None:
    rows = [(3, 0.75, 4.0), (4, 1.0, 0.0)]
    assert with_rows(tmp_path, rows).epochs() == {4: 3.0}


def test_rows_are_weighted_by_their_images_if_the_batch_size_changes(tmp_path: Path) -> None:
    """Two steps of 4 images with a loss of 4, one of 8 with a loss of 1."""
    rows = [(2, 0.5, 4.0), (3, 1.0, 1.0)]
    assert with_rows(tmp_path, rows).epochs() == {3: 2.5}


def test_unfinished_epoch_has_no_mean(tmp_path: Path) -> None:
    assert with_rows(tmp_path, [(3, 0.75, 4.0)]).epochs() == {}
    assert with_rows(tmp_path, [(3, 0.75, 4.0), (4, 1.0, 0.0), (7, 1.75, 9.0)]).epochs() == {4: 3.0}


def test_row_belongs_to_the_epoch_in_which_it_starts(tmp_path: Path) -> None:
    """Check epochs of four steps and rows of three: the second row spans two epochs."""
    rows = [(3, 0.75, 1.0), (6, 1.5, 2.0), (9, 2.25, 6.0)]
    assert with_rows(tmp_path, rows).epochs() == {6: 1.5, 9: 6.0}


def test_epochs_shorter_than_a_row_have_no_mean(tmp_path: Path) -> None:
    rows = [(10, 2.5, 4.0), (20, 5.0, 2.0), (30, 7.5, 1.0)]
    assert with_rows(tmp_path, rows).epochs() == {10: 4.0, 20: 2.0, 30: 1.0}


def test_no_epochs_without_rows(tmp_path: Path) -> None:
    assert Metrics(tmp_path).epochs() == {}


def test_resumed_run_has_the_same_epochs(tmp_path: Path) -> None:
    rows = [(2, 0.5, 4.0), (4, 1.0, 2.0), (6, 1.5, 1.0), (8, 2.0, 0.5)]
    with_rows(tmp_path, rows)
    resumed = Metrics(tmp_path, last_step=5)  # its last checkpoint is earlier than its last row
    assert resumed.epochs() == {4: 3.0}
    for step, epoch, loss in rows[2:]:
        resumed.append(row_of(step, epoch, loss))
    assert resumed.epochs() == {4: 3.0, 8: 0.75}
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2", "4", "6", "8"]


def test_truncated_row_is_dropped(tmp_path: Path) -> None:
    with_rows(tmp_path, [(2, 0.5, 4.0), (4, 1.0, 2.0)])
    file = tmp_path / "metrics.csv"
    file.write_text(file.read_text().rstrip()[:-4])
    assert [row["step"] for row in Metrics(tmp_path, last_step=4).rows] == ["2"]


def test_loss_plot_shows_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("ddpm_cli.tracking.metrics_csv.save_loss_plot", lambda *args: shown.extend(args))
    with_rows(tmp_path, [(2, 0.5, 4.0), (4, 1.0, 2.0)]).draw(lambda step: step == 4)
    assert shown == [[2, 4], [4.0, 2.0], [1.0, 1.0], {4: 3.0}, [4], tmp_path / "loss.png"]


@pytest.mark.parametrize("end", ["7,7,7", "7,7,7,7,7,7,7,7,7", "\r\n\r\n", "\xff\xfe,,,\r\n"])
def test_invalid_rows_are_dropped(tmp_path: Path, end: str) -> None:
    with_rows(tmp_path, [(2, 0.5, 4.0)])
    with (tmp_path / "metrics.csv").open("a", newline="", encoding="latin1") as stream:
        stream.write(end)
    assert [row["step"] for row in Metrics(tmp_path, last_step=9).rows] == ["2"]


def test_rows_are_written_once_the_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = with_rows(tmp_path, [(2, 0.5, 4.0)])
    row = dict.fromkeys(COLUMNS, 1.0) | {"step": 4}
    with monkeypatch.context() as full:
        full.setattr(Path, "open", _full)
        with pytest.raises(NoRoom, match=r"metrics\.csv: no room on the disk for this file, which needs \d+ bytes"):
            metrics.append(row)
        metrics.append(row | {"step": 6})  # not written before flush
    metrics.flush()
    metrics.append(row | {"step": 8})
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["2", "4", "6", "8"]


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_epoch_means_exclude_non_finite_losses(tmp_path: Path) -> None:
    rows = [(2, 0.5, 4.0), (4, 1.0, float("nan")), (6, 1.5, 1.0), (8, 2.0, 0.5)]
    assert with_rows(tmp_path, rows).epochs() == {2: 4.0, 8: 0.75}
