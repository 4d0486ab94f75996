"""ddpm-train: the files of a run, resuming, the effect of the options, milestones and sweeps."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ddpm_cli.checkpoints import format as checkpoint_format
from ddpm_cli.checkpoints import run_checkpoints
from tests.conftest import TINY, TINY_POINTS, Result, train_into
from tests.data.test_image_folder import save_image
from tests.data.test_sources import write_cifar10, write_idx

Run = Callable[..., Result]
SHORT = [*TINY[1:], "train.steps=2"]
"""Overrides of a run of two steps on any dataset."""

IMPORTANCE = [
    "timestep_sampler=loss_second_moment",
    "timestep_sampler.history=1",
    "schedule=cosine",
    "schedule.timesteps=4",
]
"""Overrides with so few timesteps that each has been sampled, and its loss is used, after two steps."""


def losses(folder: Path | str) -> list[float]:
    with Path(folder, "metrics.csv").open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def weights(folder: Path | str, group: str = "model") -> torch.Tensor:
    """Return all weights of a run as one vector."""
    state = torch.load(Path(folder, "checkpoints/last.pt"), weights_only=True)
    return torch.cat([tensor.flatten() for tensor in state[group].values()])


def test_run_writes_its_files_and_nothing_else(run: Run, tmp_path: Path) -> None:
    result = run("train", *TINY, "train.steps=4", "train.milestone_every=2", "train.log_every=1")
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "outputs/train/digits").iterdir()
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        ".lock",
        "train.log",
        "metrics.csv",
        "loss.png",
        "checkpoints/step_00000000.pt",
        "checkpoints/step_00000002.pt",
        "checkpoints/step_00000004.pt",
        "checkpoints/last.pt",
        "samples/step_00000002.png",
        "samples/step_00000004.png",
        "samples/film.gif",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert yaml.safe_load((folder / ".hydra/config.yaml").read_text())["train"]["steps"] == 4
    assert "step 3/4" in (folder / "train.log").read_text()
    assert "step 3/4" in result.err  # plain lines, because stderr is not a terminal
    assert f"ckpt={folder.relative_to(tmp_path)}" in result.err


def test_two_runs_in_a_row_have_different_folders(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("train", *TINY, "train.steps=1").code == 0
    assert len(list((tmp_path / "outputs/train/digits").iterdir())) == 2


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["conditioning=class", "weighting=min_snr", "train.ema_start=3"],
        ["variance=learned_range", "loss=vlb", *IMPORTANCE],
    ],
    ids=["plain", "class", "vlb"],
)
def test_resumed_run_equals_an_uninterrupted_run(run: Run, options: list[str]) -> None:
    more = [*TINY, "train.log_every=1", "train.milestone_every=2", "model.dropout=0.1", *options]
    assert run("train", *more, "train.steps=4", "out=uninterrupted").code == 0
    assert run("train", *more, "train.steps=2", "out=resumed").code == 0
    result = run("train", "resume=resumed", "train.steps=4")
    assert result.code == 0, result.err
    uninterrupted, resumed = (
        torch.load(f"{name}/checkpoints/last.pt", weights_only=True) for name in ("uninterrupted", "resumed")
    )
    assert resumed["step"] == 4
    for group in ("model", "ema"):
        assert all(torch.equal(resumed[group][key], uninterrupted[group][key]) for key in uninterrupted[group])
    grids = [Path(name, "samples/step_00000004.png").read_bytes() for name in ("uninterrupted", "resumed")]
    assert grids[0] == grids[1]
    assert losses("uninterrupted") == losses("resumed")


def test_resume_uses_the_config_of_the_run(run: Run, tmp_path: Path) -> None:
    assert run("train", *TINY, "train.steps=2", "train.milestone_every=1", "out=here").code == 0
    result = run("train", "resume=here/checkpoints/step_00000001.pt")
    assert result.code == 0, result.err
    assert "steps 1 to 2" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    refused = run("train", "resume=here", "schedule=linear")
    assert refused.code == 2
    assert "schedule=linear: not with resume=" in refused.err
    refused = run("train", "resume=here", "train.optimizer=adam")
    assert refused.code == 2
    assert refused.err == (
        "ddpm-train: train.optimizer=adam: this run has the momenta of muon, which are different; leave it out\n"
    )


def test_checkpoint_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config is read for the launch; the tensors and their checksum are read once."""
    calls: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(module, name, counted)

    assert run("train", *TINY, "train.steps=1", "out=run").code == 0
    for module, name in (
        (run_checkpoints, "read_config"),
        (run_checkpoints, "load_checkpoint"),
        (checkpoint_format, "check_checksum"),
    ):
        count(module, name)
    assert run("train", "resume=run", "train.steps=2").code == 0
    assert calls == ["read_config", "load_checkpoint", "check_checksum"]


def test_resuming_a_finished_run_changes_nothing(run: Run) -> None:
    assert run("train", *TINY, "train.steps=2", "out=here").code == 0
    before = Path("here/metrics.csv").read_bytes(), Path("here/checkpoints/last.pt").read_bytes()
    assert run("train", "resume=here").code == 0
    assert (Path("here/metrics.csv").read_bytes(), Path("here/checkpoints/last.pt").read_bytes()) == before


def test_folder_with_a_run_is_rejected_untouched(run: Run) -> None:
    assert run("train", *TINY, "train.steps=1", "out=here").code == 0
    before = {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()}
    result = run("train", *TINY, "train.steps=1", "out=here", "train.seed=5")
    assert result.code == 2
    assert "out=here: already contains a run; resume=here continues it" in result.err
    assert {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()} == before


def test_folder_with_other_files_is_rejected_untouched(run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/metrics.csv").write_text("precious")
    result = run("train", *TINY, "train.steps=1", "out=mine")
    assert result.code == 2
    assert "out=mine: already contains files" in result.err
    assert [(path.name, path.read_text()) for path in Path("mine").iterdir()] == [("metrics.csv", "precious")]


def test_hydra_run_dir_sets_the_run_folder(run: Run) -> None:
    assert run("train", *TINY, "train.steps=1", "hydra.run.dir=there").code == 0
    assert Path("there/checkpoints/last.pt").is_file()


def test_sweep_trains_every_combination(run: Run, tmp_path: Path) -> None:
    result = run(
        "train",
        "-m",
        *SHORT,
        "dataset=digits",
        "schedule=linear,cosine,quadratic,sigmoid",
        "loss=l1,l2,huber",
    )
    assert result.code == 0, result.err
    (sweep,) = (tmp_path / "outputs/sweep").iterdir()
    configs = [yaml.safe_load((sweep / str(job) / ".hydra/config.yaml").read_text()) for job in range(12)]
    assert len({(config["schedule"]["name"], config["loss"]["name"]) for config in configs}) == 12
    assert all((sweep / str(job) / "samples/step_00000002.png").is_file() for job in range(12))
    assert not (tmp_path / "outputs/train").exists()


def test_training_on_cifar10(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "data", monkeypatch)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "data"))
    result = run("train", "dataset=cifar10", "schedule=cosine", *SHORT)
    assert result.code == 0, result.err
    assert "20 examples of 3x32x32" in result.err


def test_training_on_an_image_folder(run: Run, tmp_path: Path) -> None:
    for i in range(9):
        save_image(tmp_path / "pictures" / f"{i}.JPG", (i, 2 * i, 255 - i), (40, 30))
    result = run(
        "train", "dataset=image_folder", f"dataset.root={tmp_path}/pictures", "dataset.image_size=32",
        "model=small", "loss=huber", "train.steps=1", "train.batch_size=2", "train.samples=1",
        "sampler.steps=2",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "8 examples of 3x32x32" in result.err
    assert f"           {tmp_path}/pictures\n           8 to train, 1 held out\n" in result.err


def test_annotated_experiment(run: Run, tmp_path: Path) -> None:
    write_idx(tmp_path / "data", 4, gzipped=True)
    result = run(
        "train", "experiment=annotated", f"dataset.root={tmp_path}/data", "train.epochs=0.5",
        "train.batch_size=2", "train.samples=1", "sampler.steps=2",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "schedule   linear, T=300\nloss       huber, prediction=eps" in result.err
    assert "training   1 steps of 2 examples" in result.err


def test_crash_keeps_the_last_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_cli.training.trainer import Trainer

    step = Trainer.train_step

    def failing_step(self: Trainer) -> object:
        if self.step == 3:
            raise RuntimeError("a bug")
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", failing_step)
    with pytest.raises(RuntimeError, match="a bug"):
        run("train", *TINY, "train.steps=5", "train.milestone_every=2", "out=here")
    assert torch.load("here/checkpoints/last.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(Trainer, "train_step", step)
    assert run("train", "resume=here").code == 0
    assert torch.load("here/checkpoints/last.pt", weights_only=True)["step"] == 5


def test_start_estimates_the_duration_and_suggests_quickstart(run: Run) -> None:
    from ddpm_cli.tracking import progress

    result = run("train", *TINY, "train.steps=8")
    assert "8 steps will take about" in result.err
    assert "quickstart" not in result.err
    hours, progress.HOURS = progress.HOURS, 0
    try:
        assert "experiment=quickstart" in run("train", *TINY, "train.steps=8").err
    finally:
        progress.HOURS = hours


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two steps with the default options."""
    return train_into(tmp_path_factory.mktemp("plain") / "run", *TINY, "train.steps=2", "train.log_every=1")


@pytest.mark.parametrize(
    "options",
    [
        "loss=vlb",
        "weighting=min_snr weighting.gamma=0.5",
        "weighting=p2",
        "timestep_sampler=loss_second_moment timestep_sampler.history=1",
        "conditioning=class",
        "variance=learned_range loss=hybrid",
        "variance=learned_range loss=vlb",
        "variance=fixed_large loss=vlb",
        "schedule.zero_terminal_snr=true",
        "prediction=eps",
        "schedule=linear",
        "train.optimizer=adam",
        "model.time_scale=0.25",
    ],
)
def test_every_option_changes_the_weights(run: Run, plain: Path, options: str) -> None:
    result = run("train", *TINY, "train.steps=2", "train.log_every=1", "out=here", *options.split())
    assert result.code == 0, result.err
    ours, theirs = weights("here"), weights(plain)
    assert ours.isfinite().all()
    assert all(math.isfinite(loss) for loss in losses("here"))
    assert len(ours) != len(theirs) or not torch.equal(ours, theirs)
    assert run("sample", "ckpt=here", "n=1", "out=new").code == 0


@pytest.mark.parametrize(
    "options", ["variance=fixed_large sampler=ddpm sampler.steps=20", "sampler=heun sampler.steps=3"]
)
def test_sampling_options_change_only_the_milestones(run: Run, plain: Path, options: str) -> None:
    result = run("train", *TINY, "train.steps=2", "train.log_every=1", "out=here", *options.split())
    assert result.code == 0, result.err
    assert torch.equal(weights("here"), weights(plain))
    pictures = [folder / "samples/step_00000002.png" for folder in (Path("here"), plain)]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


def test_start_table_shows_the_number_of_classes(run: Run) -> None:
    result = run("train", *TINY, "train.steps=1", "conditioning=class", "train.samples=12")
    assert "conditioned on 10 classes" in result.err
    assert "classes" not in run("train", *TINY, "train.steps=1").err


def test_milestones_cycle_through_the_classes(run: Run, plain: Path) -> None:
    """Check the size of the grids: four rows for four classes, and two rows of two without classes."""
    assert run("train", *TINY, "train.steps=2", "conditioning=class", "out=here").code == 0
    named, unnamed = (Image.open(folder / "samples/step_00000002.png") for folder in (Path("here"), plain))
    assert unnamed.size == (118, 118)
    assert named.height == 4 * 58 + 2
    assert named.width > 60


@pytest.mark.parametrize(
    ("every", "steps"), [("1epoch", [3, 6, 7]), ("0.5epochs", [2, 3, 5, 6, 7]), ("2", [2, 4, 6, 7])]
)
def test_milestones_every_few_epochs_or_steps(run: Run, every: str, steps: list[int]) -> None:
    """Train on 1500 digits in batches of 500: an epoch has three steps. The last step is always a milestone."""
    few = [
        "train.batch_size=500",
        "train.steps=7",
        "train.samples=1",
        "sampler.steps=1",
        "model.width=4",
        "model.groups=1",
    ]
    result = run("train", *TINY, *few, f"train.milestone_every={every}", "out=here")
    assert result.code == 0, result.err
    names = sorted(path.stem for path in Path("here/samples").glob("step_*"))
    assert names == [f"step_{step:08d}" for step in steps]
    kept = sorted(path.stem for path in Path("here/checkpoints").glob("step_*"))
    assert kept == names[-3:]


def test_ema_start_delays_the_average(run: Run) -> None:
    """Check that the averaged weights are those of the network until train.ema_start."""
    more = [*TINY, "train.steps=3", "train.lr=0.01"]
    for start in (0, 3, 4):
        assert run("train", *more, f"train.ema_start={start}", f"out=from{start}").code == 0
    assert torch.equal(weights("from4", "ema"), weights("from4", "model"))
    assert not torch.equal(weights("from3", "ema"), weights("from3", "model"))
    assert not torch.equal(weights("from3", "ema"), weights("from0", "ema"))
    assert torch.equal(weights("from4", "model"), weights("from0", "model"))


def test_warning_for_few_steps_with_fixed_large(run: Run) -> None:
    warning = "variance=fixed_large with 3 of 50 steps leaves much noise in the samples"
    more = [*TINY, "train.steps=1", "variance=fixed_large"]
    assert warning in run("train", *more, "sampler=ddpm").err
    assert "leaves much noise" not in run("train", *more, "sampler=ddim").err
    assert "leaves much noise" not in run("train", *more, "sampler=ddpm", "sampler.steps=13").err


def test_training_on_points(run: Run) -> None:
    result = run("train", *TINY_POINTS, "train.steps=3", "train.milestone_every=2", "out=here")
    assert result.code == 0, result.err
    assert "100 examples of 2" in result.err
    first, last = (Image.open(f"here/samples/step_0000000{step}.png") for step in (2, 3))
    with Image.open("here/samples/film.gif") as film:
        assert first.size == last.size == film.size == (400, 400)


def test_resume_requires_the_same_classes(run: Run, tmp_path: Path) -> None:
    for folder, names in {"ours": ("cat", "dog"), "theirs": ("dog", "zebra")}.items():
        for name in names:
            save_image(tmp_path / folder / name / "one.png")
    overrides = [
        "dataset=image_folder",
        "dataset.test_fraction=0",
        *TINY[1:],
        "conditioning=class",
        "dataset.image_size=8",
    ]
    result = run("train", *overrides, f"dataset.root={tmp_path}/ours", "train.steps=1", "out=here")
    assert result.code == 0, result.err
    result = run("train", "resume=here", f"dataset.root={tmp_path}/theirs", "train.steps=2")
    assert result.code == 2
    assert "resume=here: the train split has images of zebra, and the network knows cat, dog; use data" in result.err
