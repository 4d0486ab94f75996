"""Lines that people type: short forms, other names, lone paths, `latest`, and the nearest right line for the rest."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ddpm_cli.cli.app import shorthands
from ddpm_cli.cli.app.help import _texts_of
from ddpm_cli.cli.app.shorthands import expand, without_plugins
from ddpm_cli.config import EXTRA_CONFIGS
from ddpm_cli.config.plugins import VARIABLE
from ddpm_cli.shell import quoted
from tests.conftest import SCHEMAS, TINY, TINY_POINTS, Result, composed, train_into

Run = Callable[..., Result]
SHORT = [*TINY, "train.log_every=1"]

EXPANDED = {
    "train seed=3 batch_size=32 lr=1e-3 precision=fp32": [
        "train.seed=3", "train.batch_size=32", "train.lr=1e-3", "train.precision=fp32",
    ],
    "train epochs=2": ["train.epochs=2", "train.steps=null"],
    "train train.epochs=2": ["train.epochs=2", "train.steps=null"],
    "train steps=1e3": ["train.steps=1000"],
    "train -m steps=1e2,2e2": ["train.steps=100,200", "-m"],
    "train experiment=annotated train.steps=200": ["experiment=annotated", "train.steps=200", "train.epochs=null"],
    "train experiment=annotated train.steps=200 train.epochs=null": [
        "experiment=annotated", "train.steps=200", "train.epochs=null",
    ],
    "train -m lr=1e-3,3e-4": ["train.lr=1e-3,3e-4", "-m"],
    "train dataset=CIFAR10 schedule=cos loss=mse device=gpu model=unet": [
        "dataset=cifar10", "schedule=cosine", "loss=l2", "device=cuda", "model=small",
    ],
    "train dataset=FashionMNIST": ["dataset=fashion_mnist"],
    "train dataset=fashion-mnist": ["dataset=fashion_mnist"],
    "train dataset=cifar-10": ["dataset=cifar10"],
    "train -m loss=MAE,smooth_l1,Huber": ["loss=l1,huber,huber", "-m"],
    "train --config-dir conf experiment=mine": ["experiment=mine", "--config-dir", "conf"],
    "train out=1e3": ['out="1e3"'],  # not 1000.0
    "train out=1_000": ['out="1_000"'],
    "train out=lr=0.1": ['out="lr=0.1"'],
    "train out='lr=0.1'": ["out='lr=0.1'"],
    "train out=null": ["out=null"],
    "train out=${dataset.name}/1": ["out=${dataset.name}/1"],
    "train out=caf\u00e9": ['out="caf\u00e9"'],
    "sample ckpt=x image=7 mask=7": ["ckpt=x", "image=7", 'mask="7"'],
    "sample ++ckpt=x ++steps=10 +n=2": ["ckpt=x", "+sampler_changes.steps=10", "n=2"],
    "train ++train.steps=7 +experiment=annotated": ["train.steps=7", "experiment=annotated", "train.epochs=null"],
    "train ++hydra.verbose=true": ["++hydra.verbose=true"],
    "forward +schedule@schedules.mine=linear": ["+schedule@schedules.mine=linear"],
    "train -m sweep.resume=lr=1,b seed=0,1": ['sweep.resume="lr=1,b"', "train.seed=0,1", "-m"],
    "train -m hydra.sweep.dir=2024_01 seed=0,1": ['hydra.sweep.dir="2024_01"', "train.seed=0,1", "-m"],
    "sample ckpt=x steps=10": ["ckpt=x", "+sampler_changes.steps=10"],
    "sample ckpt=x sampler=ddim steps=10 sampler.eta=0.5": [
        "ckpt=x", "sampler=ddim", "sampler.steps=10", "sampler.eta=0.5",
    ],
    "sample ckpt=x class=sneaker,bag": ["ckpt=x", "classes=[sneaker,bag]"],
    "sample -m ckpt=x class=sneaker,bag": ["ckpt=x", "classes=sneaker,bag", "-m"],
    "evaluate ckpt=x sampler.steps=10": ["ckpt=x", "+sampler_changes.steps=10"],
}  # fmt: skip

REFUSED = {
    "train --batch_size 32": "--batch_size: keys are written without dashes; write batch_size=…",
    "train --lr=1e-3": "--lr=1e-3: keys are written without dashes; write lr=1e-3",
    "train T=500": "T: no such key; did you mean schedule.timesteps?",
    "train timesteps=500": "timesteps: no such key; did you mean schedule.timesteps?",
    "train ema=0.99": "ema: no such key; did you mean train.ema_decay?",
    "train width=64": "width: no such key; did you mean model.width?",
    "train train.ema=0.99": "train.ema: no such key; did you mean train.ema_decay?",
    "train schedule.T=500": "schedule.T: no such key; did you mean schedule.timesteps?",
    "train model.dim=64": "model.dim: no such key; did you mean model.width?",
    "train model.channels=64": "model.channels: no such key; did you mean model.width?",
    "train class_conditional=true": "class_conditional: no such key; did you mean conditioning=class?",
    "train dataset.path=x": "dataset.path: no such key; did you mean dataset.root?",
    "train num_workers=4": "num_workers: no such key; there is none, because the data are in memory",
    "train gpus=2": "gpus: no such key; did you mean devices?",
    "train checkpoint=x.pt": "checkpoint: no such key; did you mean resume?",
    "train pretrained=x.pt": "pretrained: no such key; did you mean resume?",
    "sample ckpt=x num_samples=4": "num_samples: no such key; did you mean n?",
    "sample ckpt=x samples=4": "samples: no such key; did you mean n?",
    "sample ckpt=x scale=3": "scale: no such key; did you mean guidance_scale?",
    "sample ckpt=x cfg=3": "cfg: no such key; did you mean guidance_scale?",
    "sample ckpt=x label=3": "label: no such key; did you mean class?",
    "sample ckpt=x checkpoint=y": "checkpoint: no such key; did you mean ckpt?",
    "train schedule=cosin": "schedule=cosin: must be constant, cosine, edm, flow, linear, quadratic or sig",
    "train dataset=/tmp/pics": "did you mean dataset=image_folder dataset.root=/tmp/pics?",
    "train dataset=~/my,pics": "did you mean dataset=image_folder 'dataset.root=\"~/my,pics\"'?",
    "train loss=l1,l2": "loss=l1,l2: has several values; add -m, which runs each of them",
    "train out=a,b": "add -m, which runs each of them, or quote a single path: 'out=\"a,b\"'",
    "train train.report=a=b": "not readable; quote its value for Hydra and the shell: 'train.report=\"a=b\"'",
    "train train.betas=[0.9,0.99": "train.betas=[0.9,0.99: not readable; write key=value, with quotes for",
    "train steps=5 epochs=2": "train.steps=5 train.epochs=2: give one of the two",
    "train help": "help: did you mean ddpm-train --help?",
    "train cifar10": "cifar10: no such file or folder; did you mean dataset=cifar10?",
    "evaluate run": "run: no such file or folder; write key=value, or a path, which means ckpt=",
    "sample": "ckpt=: missing; name a run folder or a checkpoint; ddpm-train makes one",
    "sample ckpt=latest": "ckpt=latest: no run below outputs/ has a checkpoint; ddpm-train starts one",
    "train resume=latest": "resume=latest: no run below outputs/ has a checkpoint; ddpm-train starts one",
    "train dataset.root=nowhere device=cpu": "dataset.root=nowhere: Fashion-MNIST is not there; did you mean ",
    "train --help nothing": "nothing: no such group or key; ddpm-train --help lists them",
}


@pytest.mark.parametrize("line", EXPANDED)
def test_short_forms_stand_for_full_overrides(line: str) -> None:
    command, *words = line.split()
    assert expand(command, SCHEMAS[command], words) == EXPANDED[line]


@pytest.mark.parametrize("line", REFUSED)
def test_other_lines_name_the_nearest_right_one(line: str, run: Run, tmp_path: Path) -> None:
    command, *words = line.split()
    result = run(command, *words)
    assert result.code == 2
    assert result.err.startswith(f"ddpm-{command}: ")
    assert REFUSED[line] in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Train two runs below outputs/; the second one is newer."""
    monkeypatch.chdir(tmp_path)
    folders = [Path("outputs/train/digits/1"), Path("outputs/train/my digits/2")]
    for age, folder in enumerate(folders):
        train_into(folder, *SHORT, "train.steps=2")
        os.utime(folder / "checkpoints/last.pt", (age, age))
    return folders


def test_latest_and_paths_name_a_run(two_runs: list[Path], run: Run) -> None:
    _, newest = two_runs
    lines = {
        "ckpt=latest": f"ckpt=latest is {newest}",
        "latest": f"ckpt=latest is {newest}",
        "ckpt=outputs/train": f"ckpt=outputs/train is {newest}",
        "ckpt=outputs/train/digits/1/checkpoints": "ckpt=outputs/train/digits/1/checkpoints is outputs/train/digits/1",
        "outputs/train/my digits/2": "",
    }
    for i, (line, said) in enumerate(lines.items()):
        result = run("sample", line, "n=1", "steps=2", "device=cpu", f"out=samples{i}")
        assert result.code == 0, result.err
        assert said in result.err
        assert Path(f"samples{i}/grid.png").is_file()


def test_missing_ckpt_suggests_the_newest_runs(two_runs: list[Path], run: Run) -> None:
    result = run("sample")
    assert result.code == 2
    first, *suggestions = result.err.splitlines()
    assert first == "ddpm-sample: ckpt=: missing; name a run folder or a checkpoint; the newest are:"
    older, newest = two_runs
    assert suggestions == [f"  ddpm-sample 'ckpt={newest}'", f"  ddpm-sample ckpt={older}"]
    assert run("sample", f"ckpt={newest}", "n=1", "steps=1", "device=cpu").code == 0  # as the shell passes it


def test_one_of_several_processes_says_what_latest_is(
    two_runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert expand("sample", SCHEMAS["sample"], ["ckpt=latest"]) == [f"ckpt={two_runs[-1]}"]
    assert capsys.readouterr().err.count("ckpt=latest is") == 1


@pytest.mark.parametrize("folder", ["lr=0.1, b", "1e3", 'it\'s "${x}"'])
def test_the_printed_command_can_be_pasted(folder: str, run: Run, tmp_path: Path) -> None:
    result = run("train", *SHORT, "train.steps=1", f"out={quoted(folder)}")
    assert result.code == 0, result.err
    assert Path(folder, "checkpoints/last.pt").is_file()
    (line,) = [line for line in result.err.splitlines() if "Next: " in line]
    command, *words = shlex.split(line.partition("Next: ")[2])
    assert command == "ddpm-sample"
    result = run("sample", *words, "n=1", "steps=1", "device=cpu", "out=drawn")
    assert result.code == 0, result.err
    result = run("train", *SHORT, "train.steps=1", f"out={quoted(folder)}")
    (typed,) = shlex.split(result.err.partition("already contains a run; ")[2].partition(" continues it")[0])
    assert "Finished already" in run("train", typed).err


def test_a_line_that_hydra_cannot_read_names_one_that_it_can(run: Run) -> None:
    result = run("train", *SHORT, "train.report=a=b")
    (typed,) = shlex.split(result.err.partition("the shell: ")[2])
    assert "train.report=a=b: must be" in run("train", *SHORT, typed).err


PLUGINS = {
    "plugins=./mine.py": ["./mine.py"],
    "plugins=[./mine.py,other]": ["./mine.py", "other"],
    "plugins='my plugin, a.py'": ["my plugin, a.py"],
    'plugins=["a=b.py"]': ["a=b.py"],
    "plugins=a=b.py": ["a=b.py"],
    "++plugins=~/mine.py": ["~/mine.py"],
    "plugins=[~/mine.py]": ["~/mine.py"],
}


@pytest.mark.parametrize("typed", PLUGINS)
def test_plugins_in_all_spellings(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(shorthands, "check_path", lambda *_: None)
    assert without_plugins([typed, "device=cpu"]) == ["device=cpu"]
    assert os.environ[VARIABLE].split(os.pathsep) == PLUGINS[typed]


def test_resume_of_a_finished_run_says_how_to_go_on(two_runs: list[Path], run: Run) -> None:
    result = run("train", "resume=latest")
    assert result.code == 0, result.err
    longer = "  ddpm-train 'resume=outputs/train/my digits/2' train.steps=4\n"
    assert f"Finished already. To train longer:\n{longer}" in result.err
    result = run("train", "resume=latest", "steps=3", "lr=1e-4")
    assert "steps 2 to 3" in result.err
    result = run("train", "resume=latest", "epochs=0.006")  # of 1,500 images, in batches of 8
    assert result.code == 0, result.err
    assert "of 8 examples" in result.err


def test_longer_cosine_decay_is_announced(run: Run) -> None:
    run("train", *SHORT, "steps=4", "lr_decay=cosine", "warmup_steps=0", "lr=1e-3", "out=run")
    result = run("train", "resume=run", "steps=8")
    assert "The learning rate goes up from 0 to 0.0005: its schedule now ends at step 8" in result.err


def test_samplers_and_keys_of_a_run_of_points(run: Run) -> None:
    run("train", *TINY_POINTS, "steps=1", "out=run")
    for i, words in enumerate((["sampler=ddim"], ["sampler=heun", "steps=3"], ["steps=3"])):
        result = run("sample", "ckpt=run", "n=3", "device=cpu", *words, f"out=s{i}")
        assert result.code == 0, result.err
    assert composed("experiment=swiss_roll", "sampler=heun").sampler.thresholding == "none"
    assert composed("sampler=heun").sampler.thresholding == "clip"


def test_short_keys_are_noted_in_full(run: Run) -> None:
    result = run("train", *SHORT, "seed=3", "steps=1", "out=run")
    assert result.code == 0, result.err
    assert {"train.seed=3", "train.steps=1"} <= {*yaml.safe_load(Path("run/.hydra/overrides.yaml").read_text())}
    shown = yaml.safe_load(run("train", "lr=1e-4", "--cfg", "job").out)
    assert shown["train"]["lr"] == 1e-4


def test_report_without_folders_lists_the_runs(two_runs: list[Path], run: Run) -> None:
    result = run("report")
    assert result.code == 0, result.err
    header, *lines = result.out.splitlines()
    assert header.split() == ["run", "dataset", "experiment", "steps", "loss", "last", "metric", "age"]
    assert len(lines) == 2
    assert all("2 of 2" in line and "digits" in line for line in lines)


@pytest.mark.parametrize("command", SCHEMAS)
def test_version(command: str, run: Run) -> None:
    assert "device=auto is" in run(command, "--version").out


def test_help_of_a_group_an_option_and_a_section(run: Run) -> None:
    assert "model=conv" in run("train", "--help", "model").out
    shown = run("train", "--help", "experiment=annotated").out
    assert "epochs: 6" in shown
    assert (
        "  width: 32  # channels of the first level; an even number in 4..4096\n" in run("train", "--help", "model").out
    )
    section = run("train", "--help", "train").out
    assert "  lr: 1.0e-3  # learning rate after the warm-up; in (0, 10]\n" in section
    assert "  optimizer: muon  # adam, adamw or muon\n" in section
    assert "  ema_warmup: true  # true: start with" in section


@pytest.mark.parametrize("text", ["width: 8\n", "width: [\n", "width: 3\nblocks: none\n", "- a\n", "\xff"])
def test_help_of_an_incomplete_option_of_your_own(run: Run, tmp_path: Path, own_configs: None, text: str) -> None:
    (tmp_path / "conf/model").mkdir(parents=True)
    text = f"defaults: [/schema/model/unet@_here_, _self_]\n{text}"
    (tmp_path / "conf/model/mine.yaml").write_text(text)
    result = run("train", "--config-dir", "conf", "--help", "model=mine")
    assert result.code == 0, result.err
    assert result.out.split("\n", 1)[1].split() == text.split("\n", 1)[1].split()


def in_process(*words: str, module: str = "train", **options: object) -> subprocess.CompletedProcess[bytes]:
    code = f"import sys; sys.argv[0] = 'ddpm-{module}'; from ddpm_cli.__main__ import {module} as main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], timeout=120, **options)  # type: ignore[call-overload]


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    ended = in_process("--help", stdout=write, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ended = in_process("--help", stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert ended.stderr == b"ddpm-train: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param([2], marks=pytest.mark.slow),
        pytest.param([0], marks=pytest.mark.slow),
        pytest.param([1], marks=pytest.mark.slow),
        [0, 1, 2],
    ],
    ids=["stderr", "stdin", "stdout", "all"],
)
def test_closed_streams_are_no_error(streams: list[int], tmp_path: Path) -> None:
    """As with `2>&-` in a shell, or in a service that closes its streams."""
    ended = in_process(*SHORT, "steps=1", "out=run", cwd=tmp_path, preexec_fn=lambda: [*map(os.close, streams)])
    assert ended.returncode == 0
    assert (tmp_path / "run/samples/step_00000001.png").is_file()


def test_module_lists_the_commands() -> None:
    listed = subprocess.run([sys.executable, "-m", "ddpm_cli"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()[:7]] == [
        f"ddpm-{name}" for name in ("train", "sample", "evaluate", "report", "forward", "export", "import")
    ]


@pytest.fixture
def own_configs() -> Iterator[None]:
    """Forget the folders of --config-dir after a test."""
    yield
    EXTRA_CONFIGS.clear()
    _texts_of.cache_clear()


def test_experiment_of_your_own(run: Run, tmp_path: Path, own_configs: None) -> None:
    """Run the example in docs/command-line.md, also in a sweep."""
    text = (Path(__file__).parents[2] / "docs/command-line.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(example)
    shown = yaml.safe_load(run("train", "--config-dir", "conf", "experiment=mine", "--cfg", "job").out)
    assert (shown["schedule"]["name"], shown["train"]["steps"], shown["model"]["blocks"]) == ("linear", 500, 1)
    words = ["--config-dir=conf", "experiment=mine", *SHORT, "steps=1", "seed=0,1", "hydra.sweep.dir=sweep"]
    result = run("train", "-m", *words)
    assert result.code == 0, result.err
    assert Path("sweep/1/checkpoints/last.pt").is_file()
    (tmp_path / "conf/experiment/mine.yaml").write_text(example.split("\n", 1)[1])
    result = run("train", "--config-dir", "conf", "experiment=mine")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "conf/experiment/mine.yaml: the first line must be: # @package _global_" in result.err
    assert "--config-dir=nowhere: no such folder" in run("train", "--config-dir", "nowhere").err
