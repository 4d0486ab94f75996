"""ddpm-evaluate: its metrics, the files that it writes and the input that it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddpm_cli.config import Digits
from tests.conftest import TINY, TINY_POINTS, Result, train_into

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with 8 timesteps, whose averaged and plain weights differ."""
    more = ["schedule=cosine", "schedule.timesteps=8", "conditioning=class", "train.steps=6", "train.lr=0.01"]
    return train_into(tmp_path_factory.mktemp("run") / "here", *TINY, *more)


@pytest.fixture
def evaluate(run: Run) -> Callable[..., dict[str, Any]]:
    """Return a function that runs ddpm-evaluate and returns its result, as in `evaluate("here", ckpt, "n=3")`."""

    def summary(out: str, ckpt: Path, *overrides: str) -> dict[str, Any]:
        result = run("evaluate", f"ckpt={ckpt}", f"out={out}", "device=cpu", "metrics=[nll]", *overrides)
        assert result.code == 0, result.err
        # NaN is not valid JSON
        record = json.loads(Path(out, "evaluation.json").read_text(), parse_constant=pytest.fail)
        return {**record, **record["nll"], "nll": record["metrics"]["nll"]}

    return summary


Evaluate = Callable[..., dict[str, Any]]


def nll_terms(folder: str) -> list[float]:
    with Path(folder, "nll.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["t"]) for row in rows] == list(range(len(rows)))
    return [float(row["bits_per_dim"]) for row in rows]


@pytest.mark.figures
def test_nll_is_the_sum_of_its_terms(evaluate: Evaluate, trained: Path) -> None:
    found = evaluate("new", trained, "n=6")
    assert sorted(path.name for path in Path("new").iterdir()) == ["evaluation.json", "nll.csv", "nll.png"]
    assert {key: found[key] for key in ("n", "split", "ckpt", "step", "weights", "seed")} == {
        "n": 6,
        "split": "test",
        "ckpt": str(trained / "checkpoints/last.pt"),
        "step": 6,
        "weights": "ema",
        "seed": 0,
    }
    parts = nll_terms("new")
    assert len(parts) == 8
    assert found["L_0"] == pytest.approx(parts[0])
    assert found["L_1_to_T-1"] == pytest.approx(sum(parts[1:]))
    assert found["nll"] == pytest.approx(found["L_0"] + found["L_1_to_T-1"] + found["L_T"], abs=1e-5)
    assert min(parts) > 0
    assert 0 < found["standard_error"] < found["nll"] < 100
    with Image.open("new/nll.png") as plot:
        assert plot.size == (1000, 400)


def test_result_is_logged(run: Run, trained: Path) -> None:
    result = run("evaluate", f"ckpt={trained}", "metrics=[nll]", "n=2", "out=new")
    nll = json.loads(Path("new/evaluation.json").read_text())["metrics"]["nll"]
    assert f"at most {nll:.4f} bits/dim" in result.err
    assert "over 2 examples of the test split" in result.err


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_nll_does_not_depend_on_the_batch_size(evaluate: Evaluate, trained: Path, batch_size: int) -> None:
    single = evaluate("single", trained, "n=5", "batch_size=5")
    parts = evaluate("parts", trained, "n=5", f"batch_size={batch_size}")
    assert parts["nll"] == pytest.approx(single["nll"], abs=1e-4)
    assert parts["standard_error"] == pytest.approx(single["standard_error"], abs=1e-4)
    assert nll_terms("parts") == pytest.approx(nll_terms("single"), abs=1e-4)


def test_nll_is_the_mean_over_examples(evaluate: Evaluate, trained: Path) -> None:
    """Check the standard error of two examples, which is half of their difference."""
    one, two = evaluate("one", trained, "n=1"), evaluate("two", trained, "n=2")
    assert one["standard_error"] is None
    assert two["standard_error"] == pytest.approx(abs(two["nll"] - one["nll"]), rel=1e-4)


def test_nll_depends_on_split_weights_and_seed(evaluate: Evaluate, trained: Path) -> None:
    choices = [[], ["split=train"], ["weights=model"], ["seed=1"]]
    found = [evaluate(f"new{i}", trained, "n=2", *more)["nll"] for i, more in enumerate(choices)]
    assert len(set(found)) == 4
    assert evaluate("again", trained, "n=2")["nll"] == found[0]


def test_n_larger_than_the_split_uses_all_examples(evaluate: Evaluate, tmp_path: Path) -> None:
    points = train_into(tmp_path / "run", *TINY_POINTS, "schedule=cosine", "schedule.timesteps=8", "train.steps=2")
    assert evaluate("some", points)["n"] == 64
    assert evaluate("all", points, "n=1000")["n"] == 100


def test_better_network_has_a_lower_bound(evaluate: Evaluate, tmp_path: Path) -> None:
    more = [
        "schedule=cosine",
        "schedule.timesteps=8",
        "train.lr=0.01",
        "train.warmup_steps=0",
        "train.batch_size=64",
        "train.ema_decay=0",
    ]
    worse, better = (
        evaluate(f"nll{steps}", train_into(tmp_path / f"run{steps}", *TINY_POINTS, *more, f"train.steps={steps}"))[
            "nll"
        ]
        for steps in (1, 150)
    )
    assert better < worse - 0.5


def test_network_receives_the_class(evaluate: Evaluate, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the bound changes with the labels of the data."""
    from ddpm_cli.config import registry
    from ddpm_cli.data.table import Examples

    own = evaluate("own", trained, "n=4")
    digits = registry._IMPLEMENTATIONS[Digits]

    def relabelled(dataset: Digits, train: bool) -> Examples:
        examples = digits(dataset, train)
        assert examples.labels is not None
        return Examples(examples.values, 9 - examples.labels, examples.classes)

    monkeypatch.setitem(registry._IMPLEMENTATIONS, Digits, relabelled)
    assert evaluate("relabelled", trained, "n=4")["nll"] != own["nll"]


@pytest.mark.parametrize("more", [["metrics=[nll]"], ["metrics=[fid]", "features=classifier"]])
def test_imported_statistics_are_for_fid_of_inception(more: list[str], run: Run, trained: Path) -> None:
    result = run("evaluate", f"ckpt={trained}", "reference=stats.npz", *more, "out=new")
    assert (result.code, result.err) == (
        2,
        "ddpm-evaluate: reference=stats.npz: only with metrics=[fid] and features=inception\n",
    )


def test_folder_with_files_is_refused(run: Run, trained: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("precious")
    result = run("evaluate", f"ckpt={trained}", "metrics=[nll]", "n=1", "out=mine")
    assert result.code == 2
    assert "out=mine: already contains files" in result.err
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_default_output_folder(run: Run, trained: Path) -> None:
    assert run("evaluate", f"ckpt={trained}", "metrics=[nll]", "n=1").code == 0
    (folder,) = Path("outputs/evaluate").iterdir()
    assert (folder / "evaluation.json").is_file()


def test_help_lists_the_keys(run: Run) -> None:
    out = run("evaluate", "--help").out
    assert "ddpm-evaluate ckpt=outputs/train/fashion_mnist/… metrics=[nll] n=64" in out
    for key in (
        "ckpt",
        "metrics",
        "n",
        "split",
        "batch_size",
        "seed",
        "weights",
        "device",
        "precision",
        "out",
        "features",
        "samples",
    ):
        assert f"\n  {key}: " in out


@pytest.fixture
def quick_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the classifier for a few steps only, because these tests do not check its predictions."""
    from ddpm_cli.evaluation import classifier

    monkeypatch.setattr(classifier, "MIN_STEPS", 10)
    monkeypatch.setattr(classifier, "EPOCHS", 0)


@pytest.mark.usefixtures("quick_classifier")
def test_sample_metrics_and_their_files(run: Run, trained: Path) -> None:
    before = len((trained / "evaluations.jsonl").read_text().splitlines()) if list(trained.glob("*.jsonl")) else 0
    result = run("evaluate", f"ckpt={trained}", "metrics=[fid,kid,is,prc,nll]", "n=12", "out=new", "device=cpu")
    assert result.code == 0, result.err
    record = json.loads(Path("new/evaluation.json").read_text(), parse_constant=pytest.fail)
    assert {name for name in record["metrics"] if "_std" not in name} == {
        "fd_classifier", "kd_classifier", "is_classifier", "precision_classifier", "recall_classifier", "nll",
    }  # fmt: skip
    assert record["floor"].keys() == record["metrics"].keys() - {"nll"}
    assert (record["n"], record["floor_n"], record["nfe"], record["sampler"]["steps"]) == (12, 12, 3, 3)
    assert record["precision"] == record["nll"]["precision"] == "fp32"
    assert record["guidance"] == {"interval": None, "rescale": 0.0, "guide": None}  # of the run, as nothing is typed
    assert record["command"].startswith(f"ddpm-evaluate ckpt={trained} 'metrics=[fid,kid,is,prc,nll]' n=12")
    assert f"fd_classifier {record['metrics']['fd_classifier']:.4g} (95% interval of the mean at this n: " in result.err
    assert "classes found: 0 " in result.err
    lines = (trained / "evaluations.jsonl").read_text().splitlines()
    assert len(lines) == before + 1
    assert json.loads(lines[-1]) == record
    with Image.open("new/neighbours.png") as picture:
        assert picture.size == (8 * 58 + 2, 8 * 58 + 2)
    with Image.open("new/samples.png") as picture:
        assert picture.size == (4 * 58 + 2, 3 * 58 + 2)


@pytest.mark.usefixtures("quick_classifier")
def test_given_samples_have_the_same_metrics_as_drawn_samples(run: Run, trained: Path) -> None:
    drawn = ["sample", f"ckpt={trained}", "n=12", "npz=true", "out=drawn", "device=cpu"]
    assert run(*drawn).code == 0
    found = []
    for overrides in (
        [f"ckpt={trained}", "n=12"],
        *([f"samples={at}"] for at in ("drawn/images", "drawn/samples.npz")),
    ):
        data = [] if "ckpt" in overrides[0] else ["dataset=digits"]
        result = run("evaluate", *overrides, *data, "metrics=[fid]", f"out=new{len(found)}", "device=cpu")
        assert result.code == 0, result.err
        record = json.loads(Path(f"new{len(found)}/evaluation.json").read_text())
        assert ("precision" in record) == ("ckpt" in overrides[0])
        found.append(record["metrics"]["fd_classifier"])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_missing_inception_weights_are_an_error(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", refuse)
    result = run("evaluate", f"ckpt={trained}", "features=inception", "n=10", "out=new")
    assert result.code == 2
    assert "ddpm-evaluate: features=inception: the weights of inception-v3-compat are not in" in result.err
    assert not Path("new").exists()


def test_sample_metrics_of_points_are_rejected(run: Run, tmp_path: Path) -> None:
    points = train_into(tmp_path / "run", *TINY_POINTS, "train.steps=2")
    result = run("evaluate", f"ckpt={points}", "out=new")
    assert result.code == 2
    assert "metrics=['fid']: compare images, and dataset=swiss_roll has points; use [nll]" in result.err


def test_missing_torch_fidelity_is_an_error(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_cli.cli.evaluate.find_spec", lambda name: None)
    result = run("evaluate", f"ckpt={trained}")
    assert result.code == 2
    assert "metrics=['fid']: need torch-fidelity; pip install 'ddpm-cli[eval]'" in result.err


def test_evaluations_are_not_written_through_a_link(run: Run, trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(trained, copied)
    (copied / "evaluations.jsonl").unlink(missing_ok=True)
    (copied / "evaluations.jsonl").symlink_to(tmp_path / "elsewhere")
    result = run("evaluate", f"ckpt={copied}", "metrics=[nll]", "n=1", "out=new")
    assert result.code == 0
    assert "cannot be written" in result.err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("quick_classifier")
def test_sweep_over_samplers(run: Run, trained: Path) -> None:
    """Check also that -m is accepted between the overrides, where argparse does not find it by itself."""
    overrides = [
        f"ckpt={trained}",
        "-m",
        "sampler=ddpm,ddim",
        "sampler.steps=2,4",
        "n=10",
        "device=cpu",
        "hydra.sweep.dir=sw",
    ]
    result = run("evaluate", *overrides)
    assert result.code == 0, result.err
    with Path("sw/tradeoff.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["sampler"], float(row["nfe"])) for row in rows] == [
        ("ddpm", 2), ("ddpm", 4), ("ddim", 2), ("ddim", 4),
    ]  # fmt: skip
    assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in rows)
    assert Path("sw/tradeoff.png").is_file()
