"""ddpm-forward: the images and points that it noises, and the input that it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import Result

Run = Callable[..., Result]


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "cat.jpg")
    return tmp_path / "cat.jpg"


def test_image_is_noised_by_each_schedule(run: Run, cat: Path) -> None:
    result = run("forward", "image=cat.jpg", "t=[0,50,100,150,199]", "out=new")
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path("new").iterdir()) == ["forward.png", "schedules.png"]
    assert Image.open("new/forward.png").width > Image.open("new/forward.png").height * 0.8


def test_image_of_a_dataset_is_noised(run: Run) -> None:
    assert run("forward", "dataset=digits", "index=3", "t=[0,999]", "timesteps=1000").code == 0
    (folder,) = Path("outputs/forward").iterdir()
    assert (folder / "forward.png").is_file()


@pytest.mark.figures
def test_show_selects_the_rows(run: Run, cat: Path) -> None:
    assert run("forward", "image=cat.jpg", "t=[0]", "out=five").code == 0
    result = run("forward", "image=cat.jpg", "t=[0]", "schedules.linear.beta_end=0.05", "show=[linear]", "out=one")
    assert result.code == 0, result.err
    assert Image.open("one/forward.png").height < Image.open("five/forward.png").height / 2


def drawn_rows(run: Run, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, list[torch.Tensor]]:
    """Return the rows of images that ddpm-forward draws."""
    from ddpm_cli.sampling import forward

    drawn: dict[str, list[torch.Tensor]] = {}
    save = forward.save_labelled_rows

    def spy(rows: dict[str, list[torch.Tensor]], columns: list[str], path: Path) -> None:
        drawn.update(rows)
        save(rows, columns, path)

    monkeypatch.setattr(forward, "save_labelled_rows", spy)
    result = run("forward", *overrides)
    assert result.code == 0, result.err
    return drawn


@pytest.mark.figures
def test_chain_adds_a_row_for_each_schedule(run: Run, cat: Path) -> None:
    more = ["image=cat.jpg", "t=[0,10]", "show=[linear,cosine]"]
    assert run("forward", *more, "out=jumps").code == 0
    assert run("forward", *more, "chain=true", "out=steps").code == 0
    jumps, steps = Image.open("jumps/forward.png"), Image.open("steps/forward.png")
    assert steps.width == jumps.width
    assert steps.height == pytest.approx(2 * jumps.height, rel=0.1)


def test_chain_has_the_distribution_of_q_sample(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the chain with q_sample for many points.

    Both have the same mean and standard deviation at each timestep but different noise. The noise of two parts of the
    chain is uncorrelated.
    """
    overrides = ["dataset=swiss_roll", "chain=true", "show=[linear,constant]", "timesteps=100", "t=[40,0,99]"]
    rows = drawn_rows(run, monkeypatch, *overrides)
    assert list(rows) == ["linear", "linear, chain", "constant", "constant, chain"]
    for name in ("linear", "constant"):
        for jump, walk in zip(rows[name], rows[f"{name}, chain"], strict=True):
            assert jump.shape == walk.shape
            assert not torch.allclose(jump, walk, atol=0.01)
            assert torch.allclose(jump.mean(0), walk.mean(0), atol=0.06)
            assert torch.allclose(jump.std(0), walk.std(0), rtol=0.04)
    at_40, _, at_99 = rows["constant, chain"]
    alphas = (1 - 0.035) ** torch.arange(1, 101)
    noise = (at_99 - (alphas[99] / alphas[40]).sqrt() * at_40) / (1 - alphas[99] / alphas[40]).sqrt()
    assert torch.corrcoef(torch.stack([noise[:, 0], at_40[:, 0]]))[0, 1].abs() < 0.05
    assert noise.std().item() == pytest.approx(1, rel=0.03)


def test_points_become_noise(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_cli.data.sources import load_examples
    from tests.conftest import TINY_POINTS, composed

    rows = drawn_rows(run, monkeypatch, "dataset=swiss_roll", "dataset.points=100", "t=[0,199]", "show=[cosine]")
    (first, last), x0 = rows["cosine"], load_examples(composed(*TINY_POINTS).dataset, train=True).values
    assert (first - x0).abs().max() < 0.1
    assert (last - x0).abs().max() > 1
    assert last.std().item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    ("overrides", "message"),
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
        (["dataset.points=9"], "dataset.points=9: choose a dataset too, as in dataset=swiss_roll dataset.points=9"),
        (["dataset=swiss_roll", "dataset.points=0"], "dataset.points=0: must be in 1..100000000"),
        (["image=cat.jpg", "chain=perhaps"], "chain=perhaps: must be true or false"),
        (["image=cat.jpg", "chain=null"], "chain=null: must not be null"),
    ],
)
def test_invalid_override_is_refused(run: Run, cat: Path, overrides: list[str], message: str) -> None:
    result = run("forward", *overrides)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert message in result.err
    assert [path.name for path in Path().iterdir()] == ["cat.jpg"]


def test_key_of_a_schedule_without_a_value_is_named_as_typed(run: Run) -> None:
    result = run("forward", "dataset=digits", "schedule.linear.beta_end")
    said = "schedule.linear.beta_end: no such file or folder; write key=value, or a path, which means image="
    assert (result.code, result.err) == (2, f"ddpm-forward: {said}\n")
