from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Result

Run = Callable[..., Result]


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "cat.jpg")
    return tmp_path / "cat.jpg"


def test_a_picture_is_noised_by_every_schedule(run: Run, cat: Path) -> None:
    result = run("forward", "image=cat.jpg", "t=[0,50,100,150,199]", "out=new")
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path("new").iterdir()) == ["forward.png", "schedules.png"]
    assert Image.open("new/forward.png").width > Image.open("new/forward.png").height * 0.8


def test_an_image_of_a_dataset(run: Run) -> None:
    assert run("forward", "dataset=digits", "index=3", "t=[0,999]", "timesteps=1000").code == 0
    (folder,) = Path("outputs/forward").iterdir()
    assert (folder / "forward.png").is_file()


def test_the_rows_can_be_chosen(run: Run, cat: Path) -> None:
    assert run("forward", "image=cat.jpg", "t=[0]", "out=five").code == 0
    result = run("forward", "image=cat.jpg", "t=[0]", "schedules.linear.beta_end=0.05", "show=[linear]", "out=one")
    assert result.code == 0, result.err
    assert Image.open("one/forward.png").height < Image.open("five/forward.png").height / 2


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], "image=null"),
        (["image=cat.jpg", "dataset=digits"], "image=cat.jpg"),
        (["image=nowhere.jpg"], "image=nowhere.jpg"),
        (["image=cat.jpg", "t=[200]"], "t=[200]"),
        (["image=cat.jpg", "t=[]"], "t=[]"),
        (["image=cat.jpg", "show=[linear,cosmic]"], "show=['linear', 'cosmic']: must be some of linear"),
        (["image=cat.jpg", "schedules.linear.beta_end=2"], "schedules.<name>.beta_end=2.0"),
        (["image=cat.jpg", "schedules.liner.beta_end=2"], "did you mean schedules.linear.beta_end?"),
        (["dataset=digits", "index=1500"], "index=1500"),
        (["dataset.root=/x"], "dataset.root=/x: choose a dataset too"),
    ],
)
def test_bad_input(run: Run, cat: Path, overrides: list[str], named: str) -> None:
    result = run("forward", *overrides)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert named in result.err
    assert [path.name for path in Path().iterdir()] == ["cat.jpg"]
