"""Runs that go on with other values: what was seen, and what reports, evaluations and the next resume read."""

import csv
import json
import shlex
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm_cli.data import stream, table
from tests.checkpoints.test_formats import unpacked
from tests.conftest import TINY, Result, edit_checkpoint

Run = Callable[..., Result]


def images(folder: Path, count: int = 20) -> Path:
    """Write gray images of 8x8 pixels."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


FOLDER = [*TINY, "dataset=image_folder", "dataset.root=old", "dataset.image_size=8", "dataset.channels=1"]
FOLDER += ["dataset.test_fraction=0.3"]  # of 20 images, 14 are for training


def ok(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def table_of(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def rows(folder: str) -> list[dict[str, str]]:
    return table_of(f"{folder}/metrics.csv")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The indices of the examples of each batch that a run uses."""
    batches: list[list[int]] = []
    for kind in (table.Table, stream.Stream):

        def part(self: table.Batches, *batch: int, part: Callable = kind._part) -> tuple[torch.Tensor, torch.Tensor]:
            values, indices = part(self, *batch)
            batches.append(indices.tolist())
            return values, indices

        monkeypatch.setattr(kind, "_part", part)
    return batches


@pytest.mark.parametrize("shards", [False, True], ids=["table", "shards"])
def test_other_batch_size_sees_each_image_of_an_epoch_once(shards: bool, run: Run, seen: list[list[int]]) -> None:
    """14 images: 2 steps of 4, one of 6; the second epoch in steps of 2 from 6 on, 4 images at a time."""
    images(Path("old"))
    data = FOLDER
    if shards:
        ok(run("import", "path=old", "format=shards", "out=shards", "test_fraction=0.3"))
        data = [*TINY, "dataset=shards", "dataset.root=shards", "dataset.image_size=8", "dataset.channels=1"]
    more = ["train.log_every=1", "train.samples=2"]
    ok(run("train", *data, *more, "train.batch_size=4", "train.steps=2", "out=run"))
    ok(run("train", "resume=run", "train.batch_size=6", "train.steps=3"))
    result = ok(run("train", "resume=run", "train.batch_size=4", "train.epochs=2"))
    assert "steps 3 to 7 of 4 examples, 2.14 epochs in all" in result.err
    assert [*map(len, seen)] == [4, 4, 6, 4, 4, 4, 4]
    flat = [*chain(*seen)]
    assert sorted(flat[:14]) == sorted(flat[14:28]) == [*range(14)]
    assert [int(row["images"]) for row in rows("run")] == [4, 8, 14, 18, 22, 26, 30]
    assert float(rows("run")[2]["epoch"]) == 1


@pytest.mark.parametrize("name", ["format_5.pt.xz", "format_6.pt.xz", "format_7.pt.xz"])
def test_older_run_goes_on_with_another_batch_size(name: str, tmp_path: Path, run: Run) -> None:
    """Its two steps had the batch size that it stores."""
    unpacked(name, tmp_path / "run" / "checkpoints").rename(tmp_path / "run/checkpoints/last.pt")
    size = torch.load("run/checkpoints/last.pt", weights_only=True)["config"]["train"]["batch_size"]
    ok(run("train", "resume=run", "device=cpu", f"train.batch_size={size + 4}", "train.log_every=1"))
    assert [int(row["images"]) for row in rows("run")] == [2 * size + size + 4, 2 * size + 2 * (size + 4)]
    last = torch.load("run/checkpoints/last.pt", weights_only=True)
    assert last["phases"] == [[0, size, 1500], [2, size + 4, 1500]]


def test_data_that_grew_do_not_undo_the_epochs_before(run: Run) -> None:
    """One epoch of 14 images in 2 steps of 7; the second has 28, in 4 steps."""
    images(Path("old"))
    ok(run("train", *FOLDER, "train.batch_size=7", "train.epochs=1", "train.log_every=1", "out=run"))
    images(Path("new"), 40)
    ok(run("train", "resume=run", "dataset.root=new", "resume_data_changed=true", "train.epochs=2"))
    assert [float(row["epoch"]) for row in rows("run")] == [0.5, 1, 1.25, 1.5, 1.75, 2]


def test_exported_card_counts_the_examples_of_each_batch_size(run: Run) -> None:
    """2 steps of 8 and one of 4; also after the weights were exported."""
    ok(run("train", *TINY, "train.steps=2", "out=run"))
    ok(run("train", "resume=run", "train.batch_size=4", "train.steps=3"))
    ok(run("export", "ckpt=run", "out=once"))
    ok(run("export", "ckpt=once/model.safetensors", "out=again"))
    for folder in ("once", "again"):
        assert "| steps | 3, batch size 4 at the end: 20 examples |" in Path(folder, "README.md").read_text()


def test_moved_data_are_found_by_all_that_reads_the_run(run: Run) -> None:
    images(Path("old"))
    ok(run("train", *FOLDER, "train.steps=2", "out=run"))
    Path("old").rename("new")
    refused = run("train", "resume=run", "dataset.root=nowhere", "train.steps=3")
    assert refused.code == 2
    assert yaml.safe_load(Path("run/.hydra/config.yaml").read_text())["dataset"]["root"] == str(Path("old").absolute())
    ok(run("train", "resume=run", "dataset.root=new", "train.steps=3", "train.report=val_loss", "train.report_n=2"))
    ok(run("train", "resume=run", "train.steps=4", "train.report=null"))
    ok(run("train", "resume=run/checkpoints/step_00000003.pt", "train.steps=4"))
    ok(run("evaluate", "ckpt=run", "metrics=[nll]", "n=2", "device=cpu", "out=nll"))
    ok(run("report", "run", "out=report.html"))
    (row,) = table_of("report.csv")
    assert "dataset.root=new" in shlex.split(row["command"])


def test_moved_data_of_a_finished_run_are_noted_and_nothing_else(run: Run) -> None:
    images(Path("old"))
    ok(run("train", *FOLDER, "train.steps=2", "out=run"))
    Path("old").rename("new")
    ok(run("train", "resume=run", "dataset.root=new", "train.lr=0.5"))
    noted = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert noted["dataset"]["root"] == str(Path("new").absolute())
    assert noted["train"]["lr"] == 1e-3
    assert yaml.safe_load(Path("run/.hydra/changes.yaml").read_text()) == [
        {"step": 2, "overrides": ["dataset.root=new"]}
    ]
    ok(run("evaluate", "ckpt=run", "metrics=[nll]", "n=2", "device=cpu", "out=nll"))


def test_run_copied_without_notes_remembers_where_its_data_are(run: Run) -> None:
    images(Path("old"))
    ok(run("train", *FOLDER, "train.steps=2", "out=run"))
    Path("copy").mkdir()
    Path("run/checkpoints").rename("copy/checkpoints")
    assert run("train", "resume=copy", "train.steps=3").code == 2
    ok(run("train", "resume=copy", "dataset.root=old", "train.steps=3"))
    ok(run("train", "resume=copy", "train.steps=4"))


def test_other_notes_survive_a_resume(run: Run) -> None:
    ok(run("train", *TINY, "train.steps=1", "out=base"))
    ok(run("train", "init=base", *TINY, "train.steps=1", "threads=1", "out=run"))
    ok(run("train", "resume=run", "train.steps=2"))
    noted = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert (noted["init"], noted["threads"], noted["out"]) == (str(Path("base").absolute()), 1, "run")


def test_report_of_a_resumed_run_has_its_values_now(run: Run) -> None:
    """4 steps of 8 images, then steps of 16 to 0.1 epochs: (150 - 32) / 16 = 7.4 further ones."""
    for name in "ab":
        ok(run("train", *TINY, "train.steps=4", "train.log_every=1", f"out=runs/{name}"))
    changed = ["train.epochs=0.1", "train.batch_size=16", "train.lr=5e-2"]
    ok(run("train", "resume=runs/a", *changed))
    ok(run("report", "runs"))
    a, b = table_of("runs/report.csv")
    assert (a["steps"], a["steps_planned"], b["steps"], b["steps_planned"]) == ("12", "12", "4", "4")
    assert (a["train.lr"], b["train.lr"]) == ("0.05", "0.001")
    assert (a["train.epochs"], a["train.steps"]) == ("0.1", "null")
    assert {*changed, "train.steps=null", "model=tiny"} <= {*shlex.split(a["command"])}
    assert "train.steps=4" not in a["command"]
    assert a["changes"] == f"from step 4: {' '.join(changed)} train.steps=null"
    assert b["changes"] == ""
    page = Path("runs/report.html").read_text()
    assert json.dumps(f"from step 4: {changed[0]}")[1:-1] in page


def test_planned_steps_of_an_unfinished_run_count_what_was_seen(run: Run) -> None:
    """4 steps of 8 images and 2 of 16; 86 of 150 images are left, which take 5.4 steps."""
    ok(run("train", *TINY, "train.steps=4", "train.log_every=1", "out=run"))
    ok(run("train", "resume=run", "train.steps=6", "train.batch_size=16"))
    config = Path("run/.hydra/config.yaml")
    noted = yaml.safe_load(config.read_text())
    noted["train"] |= {"steps": None, "epochs": 0.1}
    config.write_text(yaml.safe_dump(noted))
    ok(run("report", "run"))
    (row,) = table_of("run/report.csv")
    assert row["steps_planned"] == "12"


def test_run_that_goes_back_is_reported_without_the_changes_after_that(run: Run) -> None:
    ok(run("train", *TINY, "train.steps=2", "checkpoint.keep_last=null", "out=run"))
    ok(run("train", "resume=run", "train.steps=4", "train.lr=0.05"))
    ok(run("train", "resume=run/checkpoints/step_00000002.pt", "train.steps=3"))
    ok(run("report", "run"))
    (row,) = table_of("run/report.csv")
    assert "train.lr" not in row["command"]
    assert (row["changes"], row["steps_planned"]) == ("from step 2: train.steps=3 train.epochs=null", "3")


def test_sweep_still_recognizes_a_job_that_was_resumed_with_other_values(run: Run) -> None:
    sweep = ["-m", *TINY, "train.seed=0,1", "train.steps=1", "hydra.sweep.dir=sw"]
    ok(run("train", *sweep))
    ok(run("train", "resume=sw/0", "train.steps=2"))
    Path("sw/jobs.csv").write_text(Path("sw/jobs.csv").read_text().splitlines()[0] + "\n")
    ok(run("train", *sweep, "sweep.resume=sw"))
    ok(run("report", "sw"))
    first, second = table_of("sw/report.csv")
    assert (first["steps"], first["steps_planned"], second["steps_planned"]) == ("2", "2", "1")


def test_run_whose_first_timestep_is_refused_now_is_continued(run: Run) -> None:
    """Runs of older versions draw their pictures as before. Their samples are measured only with another sampler."""
    images(Path("old"))
    steps = ["schedule=cosine", "schedule.timesteps=100", "sampler=ddim", "sampler.steps=10", "train.milestone_every=9"]
    ok(run("train", *FOLDER, *steps, "out=run", "train.steps=1"))
    last = Path("run/checkpoints/last.pt")
    config = torch.load(last, weights_only=True)["config"]
    edit_checkpoint(last, last, config=config | {"sampler": config["sampler"] | {"spacing": "stride"}})
    refused = run("train", "resume=run", "train.steps=2", "train.report=fd_classifier")
    assert refused.code == 2
    assert "sampler.spacing=stride: these steps start at t=90 of T=100, but" in refused.err
    ok(run("train", "resume=run", "train.steps=2"))
    assert Path("run/samples/step_00000002.png").is_file()
    assert "sampler.spacing=stride: these steps start at t=90" in run("sample", "ckpt=run", "n=1").err
    ok(run("sample", "ckpt=run", "n=1", "sampler.spacing=trailing"))
