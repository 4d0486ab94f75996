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
    """The axes of what was saved last."""
    axes: list[Axes] = []
    save = Figure.savefig

    def spy(self: Figure, *args: object, **options: object) -> None:
        axes[:] = self.axes
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return axes


def lines(axes: Axes) -> list[list[tuple[float, float]]]:
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines]


def test_points_are_drawn_where_they_are() -> None:
    """A few hundred at one place make a dark spot there, and there alone."""

    def spot(x: float, y: float) -> np.ndarray:
        """Row and column of the middle of what a cloud at (x, y) adds to an empty picture."""
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
    assert right[1] == pytest.approx(-up[0], abs=1)  # a unit is as long both ways


def test_the_loss_and_the_means_of_epochs(drawn: list[Axes], tmp_path: Path) -> None:
    plots.save_loss_plot([5, 10, 15], [0.4, 0.2, 0.1], {10: 0.3, 15: 0.1}, tmp_path / "loss.png")
    (axes,) = drawn
    assert lines(axes) == [[(5, 0.4), (10, 0.2), (15, 0.1)], [(10, 0.3), (15, 0.1)]]
    assert axes.get_yscale() == "log"
    assert axes.get_legend() is not None
    with Image.open(tmp_path / "loss.png") as image:
        assert (image.format, image.size) == ("PNG", (640, 400))
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_the_loss_before_an_epoch_is_over(drawn: list[Axes], tmp_path: Path) -> None:
    plots.save_loss_plot([5], [0.4], {}, tmp_path / "loss.png")
    assert lines(drawn[0]) == [[(5, 0.4)]]
    assert drawn[0].get_legend() is None


def test_the_terms_of_the_bound_and_their_sums(drawn: list[Axes], tmp_path: Path) -> None:
    plots.save_bound_plot([2.0, 0.5, 0.25], tmp_path / "nll.png")
    each, summed = drawn
    assert lines(each) == [[(0, 2), (1, 0.5), (2, 0.25)]]
    assert lines(summed) == [[(0, 2), (1, 2.5), (2, 2.75)]]
    assert summed.get_ylim()[0] == 0
    with Image.open(tmp_path / "nll.png") as image:
        assert (image.format, image.size) == ("PNG", (1000, 400))


@pytest.mark.parametrize("terms", [[-2.0, 0.5, 0.25], [-3.0, 1.0], [1.5]])
def test_sums_of_densities_are_not_cut_off(drawn: list[Axes], tmp_path: Path, terms: list[float]) -> None:
    plots.save_bound_plot(terms, tmp_path / "nll.png")
    low, high = drawn[1].get_ylim()
    assert low <= min(np.cumsum(terms))
    assert high >= max(np.cumsum(terms))


def test_rows_of_images_and_of_points(drawn: list[Axes], tmp_path: Path) -> None:
    points = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    rows = {"linear": [torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], "roll": [points, points / 2]}
    plots.save_labelled_rows(rows, ["t=0", "t=9"], tmp_path / "rows.png")
    assert [axes.get_title() for axes in drawn] == ["t=0", "t=9", "", ""]
    assert [axes.get_ylabel() for axes in drawn] == ["linear", "", "roll", ""]
    assert np.asarray(drawn[0].images[0].get_array()).tolist() == [[128] * 8] * 8
    assert drawn[0].images[0].get_clim() == (0, 255)  # gray is not stretched
    assert np.allclose(drawn[2].collections[0].get_offsets(), points)
    assert drawn[2].get_xlim() == drawn[3].get_xlim() == (-plots.EXTENT, plots.EXTENT)
