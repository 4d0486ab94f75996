"""`ddpm-sample`: class labels, points, interpolation and inpainting."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY, TINY_POINTS, Result, edit_checkpoint, train_into

Run = Callable[..., Result]

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
LEARN = ["train.steps=20", "train.lr=0.02", "train.warmup_steps=0", "train.ema_decay=0"]
"""Enough training that the outputs depend on all inputs."""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a class-conditional network whose classes have the names of clothes."""
    run = train_into(tmp_path_factory.mktemp("classes") / "run", *TINY, *LEARN, "conditioning=class")
    edit_checkpoint(run / "checkpoints/last.pt", run / "clothes.pt", classes=NAMES)
    return run / "clothes.pt"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_into(tmp_path_factory.mktemp("plain") / "run", *TINY, *LEARN)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = [*LEARN, "prediction=v", "schedule.zero_terminal_snr=true"]
    return train_into(tmp_path_factory.mktemp("points") / "run", *TINY_POINTS, *more)


@pytest.fixture
def sample(run: Run) -> Callable[..., dict[str, np.ndarray]]:
    """Return a function: `sample("here", ckpt, "n=3")` runs `ddpm-sample` and returns here/samples.npz."""

    def arrays(out: str, ckpt: Path, *overrides: str) -> dict[str, np.ndarray]:
        result = run("sample", f"ckpt={ckpt}", f"out={out}", "npz=true", "device=cpu", *overrides)
        assert result.code == 0, result.err
        return dict(np.load(f"{out}/samples.npz"))

    return arrays


Sample = Callable[..., dict[str, np.ndarray]]


def test_default_classes_cycle(sample: Sample, classes: Path) -> None:
    samples = sample("new", classes, "n=12")
    assert samples["labels"].tolist() == [*range(10), 0, 1]
    assert samples["labels"].dtype == np.int64
    assert samples["images"].shape == (12, 8, 8, 1)


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("class=7", [7, 7, 7]),
        ("class=sneaker", [7, 7, 7]),
        ("class=ANKLE_BOOT", [9, 9, 9]),
        ("class=ankle boot", [9, 9, 9]),
        ("class=t-shirt/top", [0, 0, 0]),
        ("class=[2,0]", [2, 0, 2]),
        ("class=[bag,1]", [8, 1, 8]),
        ("class=null", [0, 1, 2]),
    ],
)
def test_classes_by_number_name_and_list(sample: Sample, classes: Path, typed: str, labels: list[int]) -> None:
    assert sample("new", classes, "n=3", typed)["labels"].tolist() == labels


def test_unknown_class_lists_the_classes(run: Run, classes: Path) -> None:
    result = run("sample", f"ckpt={classes}", "class=boots")
    assert result.code == 2
    assert f"class=boots: must be a number in 0..9 or one of {', '.join(NAMES[:-1])} or Ankle boot\n" in result.err


def test_images_depend_on_the_class(sample: Sample, classes: Path) -> None:
    by_name, by_number = sample("a", classes, "n=2", "class=sneaker"), sample("b", classes, "n=2", "class=7")
    other = sample("c", classes, "n=2", "class=1")
    assert np.array_equal(by_name["images"], by_number["images"])
    assert not np.array_equal(by_name["images"], other["images"])


def test_images_of_a_class_do_not_depend_on_n_or_batch_size(sample: Sample, classes: Path) -> None:
    large = sample("a", classes, "n=7", "class=[3,5]", "guidance_scale=2")
    small = sample("b", classes, "n=5", "class=[3,5]", "guidance_scale=2", "batch_size=2")
    assert np.array_equal(small["labels"], large["labels"][:5])
    assert np.abs(small["images"].astype(int) - large["images"][:5]).max() <= 1


def test_guidance_scale_0_ignores_the_class(sample: Sample, classes: Path) -> None:
    def images(label: int, scale: int) -> np.ndarray:
        out = f"{label}at{scale}"
        return sample(out, classes, "n=2", f"class={label}", f"guidance_scale={scale}")["images"]

    assert np.array_equal(images(3, 0), images(8, 0))
    at_1 = images(3, 1)
    assert not np.array_equal(at_1, images(8, 1))
    assert not np.array_equal(at_1, images(3, 4))


def test_interval_and_guide_of_guidance(sample: Sample, classes: Path, plain: Path) -> None:
    """Without noise levels in the interval, and away from itself, the network is not guided at all."""
    images = {
        typed: sample(f"guided{i}", classes, "n=3", *typed.split())["images"].astype(int)
        for i, typed in enumerate(
            [
                "guidance_scale=1",
                "guidance_scale=4 guidance.interval=[0,1e-6]",
                f"guidance_scale=4 guidance.guide={classes}",
                "guidance_scale=4",
                "guidance_scale=4 guidance.interval=[0,inf]",
                "guidance_scale=4 guidance.rescale=0.7",
                f"guidance_scale=4 guidance.guide={plain}",
            ]
        )
    }
    apart = {typed: np.abs(found - images["guidance_scale=1"]).max() for typed, found in images.items()}
    free, guided = list(apart.values())[:3], list(apart.values())[3:]
    assert max(free) <= 1
    assert min(guided) > 1
    assert apart["guidance_scale=4 guidance.interval=[0,inf]"] == apart["guidance_scale=4"]


def test_unconditional_network_is_guided_by_another(sample: Sample, classes: Path, plain: Path) -> None:
    own = sample("own", plain, "n=3")["images"].astype(int)
    away = sample("away", plain, "n=3", "guidance_scale=0", f"guidance.guide={plain}")["images"]
    assert np.abs(own - away).max() <= 1


def test_default_guidance_scale_is_that_of_the_run(sample: Sample, tmp_path: Path) -> None:
    run = train_into(tmp_path / "run", *TINY, *LEARN, "conditioning=class", "guidance_scale=3")
    default, same = sample("a", run, "n=4"), sample("b", run, "n=4", "guidance_scale=3")
    other = sample("c", run, "n=4", "guidance_scale=1")
    assert np.array_equal(default["images"], same["images"])
    assert not np.array_equal(default["images"], other["images"])
    assert np.array_equal(Image.open("a/grid.png"), Image.open(run / "samples/step_00000020.png"))


def test_grid_shows_class_names(sample: Sample, classes: Path, plain: Path) -> None:
    """Check a grid of two classes with three images each: two rows with the class names on the left."""
    samples = sample("named", classes, "n=6", "class=[sneaker,bag]")
    sample("unnamed", plain, "n=6")
    named, unnamed = Image.open("named/grid.png"), Image.open("unnamed/grid.png")
    assert named.height == unnamed.height  # two rows of three
    assert named.width > unnamed.width + 20
    pixels = np.asarray(named)
    first = named.width - unnamed.width + 2
    for i in range(6):  # images of 8x8 pixels are enlarged by 7
        top, left = 2 + 58 * (i % 2), first + 58 * (i // 2)
        assert np.array_equal(pixels[top : top + 56 : 7, left : left + 56 : 7], samples["images"][i, ..., 0])


def digit(i: int) -> np.ndarray:
    """Return image i of the test split."""
    from ddpm_cli.data.sources import load_examples
    from tests.conftest import composed

    return load_examples(composed(*TINY).dataset, train=False).values[i, 0].numpy()


def test_interpolation(sample: Sample, plain: Path) -> None:
    """Check that at a small t the ends are close to the images and the middle is close to their mean."""
    a, b = digit(3).astype(float), digit(5).astype(float)
    samples = sample("new", plain, "task=interpolate", "a=3", "b=5", "t=0", "n=5")
    images = samples["images"][..., 0]
    assert samples["labels"].tolist() == [-1] * 5
    assert np.abs(a - b).mean() > 40
    for image, weight in zip(images, np.linspace(0, 1, 5), strict=True):
        assert np.abs(image - ((1 - weight) * a + weight * b)).mean() < 12
    far = sample("far", plain, "task=interpolate", "a=3", "b=5", "t=49", "n=5")["images"][..., 0]
    assert np.abs(far[0] - a).mean() > 40
    assert len(sample("default", plain, "task=interpolate", "a=3", "b=5")["images"]) == 9


def test_interpolation_of_files(sample: Sample, plain: Path) -> None:
    for i in (3, 5):
        Image.fromarray(digit(i)).save(f"{i}.png")
    numbers = sample("a", plain, "task=interpolate", "a=3", "b=5", "n=3")
    files = sample("b", plain, "task=interpolate", "a=3.png", "b=5.png", "n=3", "batch_size=1")
    assert np.abs(numbers["images"].astype(int) - files["images"]).max() <= 1
    row = np.asarray(Image.open("a/grid.png"))
    assert np.array_equal(row[2:58:7, 2:58:7], digit(3))  # the grid starts and ends with the two images
    assert np.array_equal(row[2:58:7, 2 + 4 * 58 : 58 + 4 * 58 : 7], digit(5))


def test_interpolated_images_share_their_noise(sample: Sample, plain: Path) -> None:
    """Check that an interpolation from an image to itself is constant."""
    images = sample("new", plain, "task=interpolate", "a=3", "b=3", "n=4", "batch_size=3")["images"].astype(int)
    assert np.ptp(images, axis=0).max() <= 1


@pytest.mark.parametrize(("typed", "label"), [([], -1), (["class=ankle_boot"], 9), (["class=2"], 2)])
def test_interpolation_has_at_most_one_class(sample: Sample, classes: Path, typed: list[str], label: int) -> None:
    samples = sample("new", classes, "task=interpolate", "a=3", "b=3", "n=4", "t=40", *typed)
    assert samples["labels"].tolist() == [label] * 4
    assert np.ptp(samples["images"].astype(int), axis=0).max() <= 1


def test_inpainting_cycles_through_classes(sample: Sample, classes: Path) -> None:
    Image.new("L", (8, 8), 255).save("all.png")
    samples = sample("new", classes, "task=inpaint", "image=4", "mask=all.png", "resamplings=1", "n=3", "class=[1,7]")
    assert samples["labels"].tolist() == [1, 7, 1]


def test_numeric_class_name_takes_precedence(sample: Sample, classes: Path) -> None:
    from_one = edit_checkpoint(classes, Path("from_one.pt"), classes=[str(i) for i in range(1, 11)])
    assert sample("new", from_one, "n=2", "class=1")["labels"].tolist() == [0, 0]


def test_interpolation_depends_on_the_seed(sample: Sample, plain: Path) -> None:
    more = ["task=interpolate", "a=3", "b=5", "n=2"]
    one, other = sample("a", plain, *more, "seed=1"), sample("b", plain, *more, "seed=2")
    assert not np.array_equal(one["images"], other["images"])


@pytest.mark.parametrize("ckpt", ["plain", "classes"])
def test_inpainting_keeps_the_rest_of_the_image(sample: Sample, ckpt: str, request: pytest.FixtureRequest) -> None:
    hole = np.zeros((8, 8), bool)
    hole[2:6, 3:5] = True
    Image.fromarray(np.where(hole, 255, 0).astype(np.uint8)).save("hole.png")
    more = ["task=inpaint", "image=4", "mask=hole.png", "resamplings=2", "gif=true"]
    samples = sample("new", request.getfixturevalue(ckpt), *more)
    images = samples["images"][..., 0].astype(int)
    assert len(images) == 8
    assert np.abs(images - digit(4))[:, ~hole].max() <= 1
    assert images[:, hole].std(axis=0).max() > 1  # the fillings differ
    assert samples["labels"].tolist() == [-1] * 8
    row = np.asarray(Image.open("new/grid.png"))
    assert np.array_equal(row[2:58:7, 2:58:7], digit(4))
    assert np.array_equal(row[2:58:7, 60:116:7], np.where(hole, 128, digit(4)))
    with Image.open("new/film.gif") as film:
        assert film.n_frames == 2 * 2 + 1  # the last of three steps, which leads to the image, is not repeated


def test_inpainting_depends_on_resamplings_and_seed(sample: Sample, plain: Path) -> None:
    Image.new("L", (8, 8), 255).save("all.png")
    Image.fromarray(digit(4)).save("four.png")
    more = ["task=inpaint", "mask=all.png", "n=3"]
    one = sample("a", plain, *more, "image=4", "resamplings=1")["images"]
    assert not np.array_equal(one, sample("b", plain, *more, "image=4", "resamplings=3")["images"])
    assert not np.array_equal(one, sample("c", plain, *more, "image=4", "resamplings=1", "seed=1")["images"])
    from_file = sample("d", plain, *more, "image=four.png", "resamplings=1", "batch_size=2")["images"]
    assert np.abs(one.astype(int) - from_file).max() <= 1


def test_mask_size_is_compared_after_exif_rotation(sample: Sample, plain: Path) -> None:
    picture = Image.new("L", (8, 12), 77)
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation tag: rotate by 90 degrees
    picture.save("turned.png", exif=exif)
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 2:6] = 255  # the left half of the square crop
    Image.fromarray(mask).save("hole.png")
    images = sample("new", plain, "task=inpaint", "image=turned.png", "mask=hole.png", "resamplings=1")["images"]
    assert np.abs(images[:, :, 5:, 0].astype(int) - 77).max() <= 1
    assert np.abs(images[:, :, :3, 0].astype(int) - 77).max() > 1


def test_sampling_of_points_with_npz_and_gif(sample: Sample, points: Path) -> None:
    samples = sample("new", points, "n=40", "batch_size=30", "gif=true")
    files = sorted(path.name for path in Path("new").iterdir())
    assert files == ["film.gif", "grid.png", "points.csv", "reverse.png", "samples.npz"]
    assert samples["points"].shape == (40, 2)
    assert samples["points"].dtype == np.float32
    assert samples["labels"].tolist() == [-1] * 40
    with Path("new/points.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["x", "y"]
    assert np.allclose(np.array(rows, float), samples["points"], rtol=1e-5)
    with Image.open("new/film.gif") as film, Image.open("new/grid.png") as grid:
        assert film.n_frames == 3
        assert film.size == grid.size
        assert (np.asarray(grid.convert("L")) < 200).sum() > 100  # frame, ticks and points


def test_sampling_of_points_by_default(run: Run, points: Path) -> None:
    assert run("sample", f"ckpt={points}", "out=new").code == 0
    assert sorted(path.name for path in Path("new").iterdir()) == ["grid.png", "points.csv", "reverse.png"]
    assert len(Path("new/points.csv").read_text().splitlines()) == 1 + 64


@pytest.mark.parametrize(
    "sampler", ["ddpm", "ddim", "euler", "heun", "edm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"]
)
def test_every_sampler_starts_from_pure_noise(sample: Sample, points: Path, sampler: str) -> None:
    """Check a network whose last timestep has no signal, so that a division by the signal would fail."""
    samples = sample("new", points, "n=50", f"sampler={sampler}", "sampler.steps=10", "sampler.thresholding=none")
    assert np.isfinite(samples["points"]).all()
    assert 0.1 < samples["points"].std() < 5
