"""ddpm-sample: the images, arrays and films that it writes, and the options that change them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.files import NoRoom
from ddpm_cli.sampling import draw
from tests.conftest import TINY, Result, edit_checkpoint, train_into

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose averaged and plain weights differ."""
    folder = tmp_path_factory.mktemp("run") / "here"
    return train_into(folder, *TINY, "train.steps=6", "train.milestone_every=3", "train.lr=0.01")


def pixels(folder: Path | str) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(int) for file in sorted(Path(folder, "images").iterdir())]


def test_sampling_needs_only_the_checkpoint(run: Run, trained: Path) -> None:
    result = run("sample", f"ckpt={trained}", "n=5", "out=new", "device=cpu")
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path("new").iterdir()) == ["grid.png", "images"]
    assert [file.name for file in sorted(Path("new/images").iterdir())] == [f"0000{i}.png" for i in range(5)]
    assert Image.open("new/images/00000.png").size == (8, 8)


def test_image_that_cannot_be_written_is_an_error(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(image: Image.Image, path: Path) -> None:
        if path.name == "00003.png":
            raise NoRoom(path, 100)

    monkeypatch.setattr(draw, "save_png", failing)
    result = run("sample", f"ckpt={trained}", "n=7", "batch_size=4", "out=new", "device=cpu")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        "ddpm-sample: new/images/00003.png: no room on the disk for this file, which needs 100 bytes; make some"
    )


def test_sampling_from_a_file_with_film_and_arrays(run: Run, trained: Path) -> None:
    file = trained / "checkpoints/step_00000003.pt"
    more = ["sampler=ddim", "sampler.steps=5", "gif=true", "npz=true", "seed=7", "device=cpu", "batch_size=3"]
    result = run("sample", f"ckpt={file}", "n=4", "out=new", *more)
    assert result.code == 0, result.err
    arrays = np.load("new/samples.npz")
    assert arrays["images"].shape == (4, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    assert arrays["labels"].tolist() == [-1] * 4
    assert [(a[..., 0] == b).all() for a, b in zip(arrays["images"], pixels("new"), strict=True)] == [True] * 4
    with Image.open("new/film.gif") as film, Image.open("new/grid.png") as grid:
        assert film.n_frames == 5  # one frame per step if there are few steps
        film.seek(film.n_frames - 1)
        assert film.info["duration"] >= 2000
        last = np.asarray(film.convert("L")).astype(int)
        assert film.size == grid.size
        assert np.abs(last - np.asarray(grid.convert("L"))).max() <= 1


def test_image_of_a_seed_does_not_depend_on_n_and_batch_size(run: Run, trained: Path) -> None:
    assert run("sample", f"ckpt={trained}", "n=7", "batch_size=7", "seed=7", "out=a").code == 0
    assert run("sample", f"ckpt={trained}", "n=4", "batch_size=3", "seed=7", "out=b").code == 0
    assert run("sample", f"ckpt={trained}", "n=4", "seed=8", "out=c").code == 0
    for ours, theirs in zip(pixels("b"), pixels("a"), strict=False):
        assert np.abs(ours - theirs).max() <= 1
    assert any(np.abs(ours - theirs).max() > 1 for ours, theirs in zip(pixels("c"), pixels("a"), strict=False))


def test_averaged_weights_are_the_default(run: Run, trained: Path) -> None:
    for name, more in [("default", []), ("ema", ["weights=ema"]), ("model", ["weights=model"])]:
        assert run("sample", f"ckpt={trained}", "n=2", f"out={name}", *more).code == 0
    assert all((a == b).all() for a, b in zip(pixels("default"), pixels("ema"), strict=True))
    assert not all((a == b).all() for a, b in zip(pixels("ema"), pixels("model"), strict=True))


def test_sampling_reproduces_the_milestone_grid(run: Run, trained: Path) -> None:
    assert run("sample", f"ckpt={trained}", "n=4", "out=new").code == 0
    assert np.array_equal(Image.open("new/grid.png"), Image.open(trained / "samples/step_00000006.png"))


def test_default_output_folder(run: Run, trained: Path) -> None:
    assert run("sample", f"ckpt={trained}", "n=1").code == 0
    (folder,) = Path("outputs/sample").iterdir()
    assert (folder / "grid.png").is_file()


def test_sweep_over_samplers(run: Run, trained: Path) -> None:
    result = run(
        "sample",
        "-m",
        f"ckpt={trained}",
        "n=1",
        "sampler=ddpm,ddim",
        "sampler.steps=2,3",
        "hydra.sweep.dir=sw",
    )
    assert result.code == 0, result.err
    assert all(Path(f"sw/{job}/grid.png").is_file() for job in range(4))


def test_sweep_over_samplers_with_a_key_of_each(run: Run, trained: Path) -> None:
    """The number of steps is the same for all jobs, and is that of the samples."""
    one = run("sample", f"ckpt={trained}", "n=1", "sampler=ddim", "sampler.steps=2", "out=one")
    assert one.code == 0, one.err
    several = ("sampler=ddpm,ddim", "sampler.steps=2", "hydra.sweep.dir=sw")
    result = run("sample", "-m", f"ckpt={trained}", "n=1", *several)
    assert result.code == 0, result.err
    assert Path("sw/1/grid.png").read_bytes() == Path("one/grid.png").read_bytes()
    assert Path("sw/0/grid.png").read_bytes() != Path("one/grid.png").read_bytes()


def test_folder_with_files_is_refused(run: Run, trained: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("precious")
    result = run("sample", f"ckpt={trained}", "n=1", "out=mine")
    assert result.code == 2
    assert "out=mine: already contains files" in result.err
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_weights_of_another_network_are_refused(run: Run, trained: Path) -> None:
    last = trained / "checkpoints/last.pt"
    config = torch.load(last, weights_only=True)["config"]
    edit_checkpoint(last, Path("mixed.pt"), config=config | {"model": config["model"] | {"blocks": 2}})
    result = run("sample", "ckpt=mixed.pt", "n=1")
    assert result.code == 2
    assert "does not fit the network in its config: ema has other keys" in result.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ("sampler=ddpm", 32),  # a film shows at most 32 of the 50 steps
        ("sampler=ddpm sampler.steps=7", 7),
        ("sampler=ddim sampler.steps=null sampler.sections=[2,3]", 5),
        ("sampler=ddim sampler.sections=[2,3]", 5),  # sections take precedence over sampler.steps
        ("sampler=ddim sampler.spacing=stride sampler.steps=25", 25),
        ("sampler=dpmpp_2m sampler.steps=4", 4),
        ("sampler=heun sampler.steps=3", 3),
    ],
)
def test_film_has_a_frame_for_each_step(run: Run, trained: Path, overrides: str, steps: int) -> None:
    result = run("sample", f"ckpt={trained}", "n=1", "gif=true", "out=new", *overrides.split())
    assert result.code == 0, result.err
    with Image.open("new/film.gif") as film:
        assert film.n_frames == steps


def test_sampling_options_change_the_images(run: Run, trained: Path) -> None:
    plain = ["sampler=ddim", "sampler.steps=10"]
    images = {}
    for name, overrides in {
        "ddim": plain,
        "stride": ["sampler=ddim", "sampler.steps=25", "sampler.spacing=stride"],
        "logsnr": [*plain, "sampler.spacing=logsnr"],
        "dynamic": [*plain, "sampler.thresholding=dynamic"],
        "none": [*plain, "sampler.thresholding=none"],
        "dpmpp_2m": ["sampler=dpmpp_2m", "sampler.steps=10"],
        "heun": ["sampler=heun", "sampler.steps=10"],
        "edm": ["sampler=edm", "sampler.steps=10"],
        "dpmpp_2m_sde": ["sampler=dpmpp_2m_sde", "sampler.steps=10"],
        "dpmpp_3m": ["sampler=dpmpp_3m", "sampler.steps=10"],
        "unipc": ["sampler=unipc", "sampler.steps=10"],
        "order": ["sampler=unipc", "sampler.steps=10", "sampler.order=3"],
        "trailing": [*plain, "sampler.spacing=trailing"],
        "karras": [*plain, "sampler.spacing=karras"],
        "rho": [*plain, "sampler.spacing=karras", "sampler.rho=3"],
        "small": ["sampler=ddpm", "sampler.steps=20", "variance=fixed_small"],
        "large": ["sampler=ddpm", "sampler.steps=20", "variance=fixed_large"],
    }.items():
        result = run("sample", f"ckpt={trained}", "n=2", f"out={name}", *overrides)
        assert result.code == 0, result.err
        images[name] = np.stack(pixels(name)).tobytes()
    assert len(set(images.values())) == len(images)


def test_warning_for_few_steps_with_fixed_large(run: Run, trained: Path) -> None:
    more = [f"ckpt={trained}", "n=1", "sampler=ddpm"]
    warned = run("sample", *more, "variance=fixed_large", "sampler.sections=[4,8]")
    assert "variance=fixed_large with 12 of 50 steps leaves much noise in the samples" in warned.err
    assert "leaves much noise" not in run("sample", *more, "variance=fixed_large").err
    assert "leaves much noise" not in run("sample", *more, "sampler.steps=5").err
