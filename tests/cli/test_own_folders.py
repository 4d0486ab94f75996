"""The folders that the commands write, given to all commands: their figures are never taken for single images."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_cli
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint
from ddpm_cli.config import FashionMnist, ImageFolder
from ddpm_cli.data.image_folder import find_files, read_image_folder
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.samples import read_sample_images
from ddpm_cli.export.pipeline_folder import read_pipeline
from ddpm_cli.images.own_folders import KINDS, SAMPLES, OwnFolder
from ddpm_cli.report.runs import find_runs
from tests.cli.test_export import DDPM
from tests.conftest import TINY, TINY_POINTS, Result

Run = Callable[..., Result]
SMALL = ["dataset.image_size=8", "schedule.timesteps=8"]
COMMANDS = {
    "train": ["train", *DDPM, *SMALL, "train.steps=1"],
    "train points": ["train", *TINY_POINTS, "train.steps=1"],
    "sweep": ["train", "-m", *TINY, "train.steps=1"],
    "sample": ["sample", "ckpt=train", "n=10", "gif=true", "device=cpu"],
    "sample points": ["sample", "ckpt=train points", "n=3", "gif=true", "device=cpu"],
    "evaluate": ["evaluate", "ckpt=train", "metrics=[nll]", "n=1", "device=cpu"],
    "forward": ["forward", "dataset=digits", "show=[cosine]"],
    "export": ["export", "ckpt=train"],
    "export diffusers": ["export", "ckpt=train", "format=diffusers"],
    "import": ["import", "path=export diffusers", "dataset=digits"],
    "shards": ["import", "format=shards", "path=sample"],
}
"""The commands that write the folders; the names are those of the folders."""
IMAGES = {"sample": 10}
"""Single images in each folder; none in the others."""
CHECKPOINTS = {"train", "train points", "export", "import"}
RUNS = {"train": 1, "train points": 1, "sweep": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folders")


@pytest.fixture
def written(folders: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run all commands once, and return the folder that contains their folders."""
    monkeypatch.chdir(folders)
    for name, (command, *overrides) in COMMANDS.items():
        if not Path(name).exists():
            out = "hydra.sweep.dir=sweep" if "-m" in overrides else f"out={name}"
            result = run(command, *overrides, out)
            assert result.code == 0, result.err
    return folders


def test_each_command_takes_what_is_meant(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMMANDS:
        assert len(list(find_files(Path(name), Path(name), False))) == IMAGES.get(name, 0), name
        assert found(find_checkpoint, "ckpt", name) == (name in CHECKPOINTS), name
        assert found(read_pipeline, "path", Path(name)) == (name == "export diffusers"), name
        assert found(find_runs, [name]) == (name in RUNS), name
        assert found(read_sample_images, name, FashionMnist(**DIGITS), Path("cache")) == (name in IMAGES), name
        assert found(read_image_folder, ImageFolder(root=name, **FOLDER), True, Path("cache")) == (name in IMAGES), name
    assert {name: len(find_runs([name])) for name in RUNS} == RUNS


DIGITS = {"root": None, "image_size": 8, "channels": 1, "flip": False}
FOLDER = {
    "image_size": 8,
    "channels": 1,
    "flip": False,
    "test_fraction": 0.0,
    "skip_broken": False,
    "follow_links": False,
}


def found(read: Callable[..., object], *arguments: object) -> bool:
    """Return whether `read` takes a folder. A folder that it refuses is named in one line."""
    message = ""
    try:
        read(*arguments)
    except UserError as error:
        message = str(error)
    assert not message or any(name in message for name in COMMANDS)
    assert "\n" not in message
    return not message


def test_the_folder_of_samples_is_that_of_their_images(written: Path) -> None:
    of_images = read_sample_images("sample/images", FashionMnist(**DIGITS), Path("cache"))
    assert np.array_equal(read_sample_images("sample", FashionMnist(**DIGITS), Path("cache")), of_images)
    examples = read_image_folder(ImageFolder(root="sample", **FOLDER), True, Path("cache"))
    assert (len(examples.values), examples.classes) == (10, [])


def test_folders_of_other_commands_are_named(written: Path) -> None:
    for name, command in {"train": "ddpm-train", "evaluate": "ddpm-evaluate", "forward": "ddpm-forward"}.items():
        with pytest.raises(UserError, match=f"^samples={name}: is a folder of {command}, whose pictures are not"):
            read_sample_images(name, FashionMnist(**DIGITS), Path("cache"))
    with pytest.raises(UserError, match="is a pipeline of diffusers; ddpm-import 'path=export diffusers' converts it"):
        find_checkpoint("ckpt", "export diffusers")


def test_shards_of_samples_have_their_images_only(written: Path) -> None:
    listed = json.loads(Path("shards/shards.json").read_text())
    assert sum(shard["images"] for split in ("train", "test") for shard in listed[split]) == 10


def test_folders_of_folders_of_samples(written: Path) -> None:
    """As in samples=outputs/sample."""
    files = list(find_files(written, written, False))
    assert sorted(files) == [written / f"sample/images/{i:05d}.png" for i in range(10)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.command} {kind.marks}")
def test_pictures_of_each_kind_are_no_images(kind: OwnFolder, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name in (*kind.marks, *kind.pictures, *(f"{folder}/a.png" for folder in kind.folders), "other/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if kind is SAMPLES:
        (tmp_path / "images").unlink()
        (tmp_path / "images").mkdir()
        (tmp_path / "images/00000.png").touch()
    left = {path.name for path in find_files(tmp_path, tmp_path, False)}
    assert left == {"mine.png"} | ({"00000.png"} if kind is SAMPLES else set())


def test_all_pictures_that_the_commands_write_are_known() -> None:
    text = "".join(file.read_text() for file in Path(ddpm_cli.__file__).parent.rglob("*.py"))
    names = {*re.findall(r"""["'/]([a-z_]+\.(?:png|gif))["'`]""", text)}
    assert {"grid.png", "tradeoff.png", "neighbours.png"} <= names
    known = {picture for kind in KINDS for picture in kind.pictures}
    assert names - known <= {"this.png", "that.png", "torn.png", "hole.png", "cat.png"}  # in the usage of a command


def test_pictures_of_yours_with_such_names_are_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("grid.png", "loss.png", "samples.png", "images/cat.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert len(list(find_files(tmp_path, tmp_path, False))) == 4
