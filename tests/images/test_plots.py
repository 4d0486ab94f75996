from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ddpm_cli.images import plots

pytestmark = pytest.mark.figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """Return a list that holds the axes of the last saved figure."""
    axes: list[Axes] = []
    save = Figure.savefig

    def spy(self: Figure, *args: object, **options: object) -> None:
        axes[:] = self.axes
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return axes


def lines(axes: Axes) -> list[list[tuple[float, float]]]:
    """Return the points of each line of a plot."""
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines]


def test_points_are_drawn_at_their_coordinates() -> None:
    """Several hundred equal points must change the picture only around their coordinates."""

    def spot(x: float, y: float) -> np.ndarray:
        """Return the row and column of the centre of the pixels that points at (x, y) change."""
        cloud, empty = (
            np.asarray(plots.scatter(p)).astype(int) for p in (torch.tensor([[x, y]] * 300), torch.zeros(0, 2))
        )
        assert cloud.shape == (400, 400, 3)
        return np.argwhere(np.abs(cloud - empty).sum(axis=2) > 0).mean(axis=0)

    middle = spot(0, 0)
    assert np.abs(middle - 200).max() < 20
    right, up = spot(1.5, 0) - middle, spot(0, 1.5) - middle
    assert right[1] > 80
    assert up[0] < -80
    assert abs(right[0]) < 1
    assert abs(up[1]) < 1
    assert right[1] == pytest.approx(-up[0], abs=1)  # both axes have the same scale


def test_loss_plot_with_means_of_epochs(drawn: list[Axes], tmp_path: Path) -> None:
    plots.save_loss_plot(
        [5, 10, 15], [0.4, 0.2, 0.1], [1e-3, 1e-3, 5e-4], {10: 0.3, 15: 0.1}, [15], tmp_path / "loss.png"
    )
    axes, below = drawn
    assert lines(axes) == [[(5, 0.4), (10, 0.2), (15, 0.1)], [(10, 0.3), (15, 0.1)], [(15, 0), (15, 1)]]
    assert lines(below) == [[(15, 0), (15, 1)], [(5, 1e-3), (10, 1e-3), (15, 5e-4)]]
    assert axes.get_yscale() == "log"
    assert {"0.1", "0.2", "0.3"} <= {label.get_text() for label in axes.get_yticklabels()}
    assert axes.get_legend() is not None
    with Image.open(tmp_path / "loss.png") as image:
        assert (image.format, image.size) == ("PNG", (640, 500))
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_loss_plot_before_the_end_of_an_epoch(drawn: list[Axes], tmp_path: Path) -> None:
    plots.save_loss_plot([5], [0.4], [1e-3], {}, [], tmp_path / "loss.png")
    assert lines(drawn[0]) == [[(5, 0.4)]]
    assert drawn[0].get_legend() is None


def test_bound_plot_has_terms_and_cumulative_sums(drawn: list[Axes], tmp_path: Path) -> None:
    plots.save_bound_plot([2.0, 0.5, 0.25], tmp_path / "nll.png")
    each, summed = drawn
    assert lines(each) == [[(0, 2), (1, 0.5), (2, 0.25)]]
    assert lines(summed) == [[(0, 2), (1, 2.5), (2, 2.75)]]
    assert summed.get_ylim()[0] == 0
    with Image.open(tmp_path / "nll.png") as image:
        assert (image.format, image.size) == ("PNG", (1000, 400))


@pytest.mark.parametrize("terms", [[-2.0, 0.5, 0.25], [-3.0, 1.0], [1.5]])
def test_bound_plot_shows_negative_sums(drawn: list[Axes], tmp_path: Path, terms: list[float]) -> None:
    plots.save_bound_plot(terms, tmp_path / "nll.png")
    low, high = drawn[1].get_ylim()
    assert low <= min(np.cumsum(terms))
    assert high >= max(np.cumsum(terms))


def test_labelled_rows_of_images_and_points(drawn: list[Axes], tmp_path: Path) -> None:
    points = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    rows = {"linear": [torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], "roll": [points, points / 2]}
    plots.save_labelled_rows(rows, ["t=0", "t=9"], tmp_path / "rows.png")
    assert [axes.get_title() for axes in drawn] == ["t=0", "t=9", "", ""]
    assert [axes.get_ylabel() for axes in drawn] == ["linear", "", "roll", ""]
    assert np.asarray(drawn[0].images[0].get_array()).tolist() == [[128] * 8] * 8
    assert drawn[0].images[0].get_clim() == (0, 255)  # the contrast is not normalized
    assert np.allclose(drawn[2].collections[0].get_offsets(), points)
    assert drawn[2].get_xlim() == drawn[3].get_xlim() == (-plots.EXTENT, plots.EXTENT)
