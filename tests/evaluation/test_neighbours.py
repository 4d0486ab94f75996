import pytest
import torch

from ddpm_cli.evaluation import neighbours
from ddpm_cli.evaluation.neighbours import nearest, neighbours_picture


@pytest.mark.parametrize("chunk_size", [3, 8192])
def test_copies_are_found(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK_SIZE", chunk_size)
    train = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    distances, indices = nearest(train[[7, 2]], train, 4)
    assert indices[:, 0].tolist() == [7, 2]
    assert distances[:, 0].tolist() == [0, 0]
    assert (distances.diff(dim=1) > 0).all()
    assert all(len(set(row)) == 4 for row in indices.tolist())


def test_distance_is_the_root_mean_square_difference() -> None:
    black, gray = torch.zeros(1, 3, 5, 5, dtype=torch.uint8), torch.full((1, 3, 5, 5), 9, dtype=torch.uint8)
    distances, _ = nearest(black, gray, 1)
    assert distances.item() == pytest.approx(9)


def test_fewer_images_than_neighbours() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert nearest(images, images, 5)[1].shape == (2, 2)


def test_picture_has_a_row_for_each_image() -> None:
    train = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    picture = neighbours_picture(train[:2], train, torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert picture.size == (4 * 58 + 2, 2 * 58 + 2)
