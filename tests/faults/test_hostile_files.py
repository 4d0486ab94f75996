"""Hostile checkpoints and run folders: they are refused in one line, fast, with little memory and without running code.

The hostile files follow the format, including its checksum.
"""

import ast
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ddpm_cli
from ddpm_cli.checkpoints import run_folder
from ddpm_cli.checkpoints.checksum import MAX_PICKLE, append_checksum
from ddpm_cli.checkpoints.loading import weights_like
from ddpm_cli.checkpoints.run_folder import FOLDERS, OURS
from ddpm_cli.checkpoints.stored_config import from_stored
from tests.conftest import TINY, Result, edit_checkpoint, train_into

Run = Callable[..., Result]
State = dict[str, Any]

SECONDS = 10
GIBIBYTE = 2**20
"""In KiB, the unit of ru_maxrss."""
HUGE = 3 * 2**29
"""In bytes: more than GIBIBYTE, but fast to create."""
NAN = float("nan")
SCRIPTS = Path(sysconfig.get_path("scripts"))


class Code:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of two runs of one step: an unconditional and a class-conditional one."""
    folder = tmp_path_factory.mktemp("runs")
    plain = train_into(folder / "plain", *TINY, "train.steps=1")
    return {"plain": plain, "classes": train_into(folder / "classes", *TINY, "train.steps=1", "conditioning=class")}


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.pt"


# Functions from a valid state to the entries that replace some of its entries.


def configured(group: str | None = None, **changes: Any) -> Callable[[State], State]:
    def change(state: State) -> State:
        config = state["config"]
        return {"config": config | ({group: config[group] | changes} if group else changes)}

    return change


def weights(change: Callable[[torch.Tensor], Any]) -> Callable[[State], State]:
    return lambda state: {key: {name: change(x) for name, x in state[key].items()} for key in ("ema", "model")}


def enormous(state: State) -> State:
    """Return a network of terabytes whose weights are views of single numbers."""
    config = state["config"] | {"model": state["config"]["model"] | {"width": 4096, "multipliers": [64, 64]}}
    like = weights_like(from_stored(config), [])

    def views() -> dict[str, torch.Tensor]:
        return {name: torch.zeros((), dtype=x.dtype).expand(x.shape) for name, x in like.items()}

    return {"config": config, "ema": views(), "model": views()}


def nested_lists(state: State) -> State:
    nested: list[Any] = []
    for _ in range(9):
        nested = [nested] * 1000
    return {"losses": {"x": nested}}


def copies(state: State) -> State:
    """Return many copies of a long text, each made by a call that torch allows."""
    import _codecs

    text = "x" * 2**20
    return {"data": [Code(_codecs.encode, text, "utf-16") for _ in range(1000)]}


def moments(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    def change_moments(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: x if name == "step" else change(x) for name, x in own.items()}

    return lambda state: {"optimizer": {i: change_moments(own) for i, own in state["optimizer"].items()}}


def canary() -> Path:
    return Path.cwd() / "canary"


STATES: dict[str, Callable[[State], State]] = {
    "code": lambda _: {"model": Code(Path.touch, canary())},
    "code in the config": lambda state: {
        "config": state["config"] | {"device": Code(os.system, f"touch {canary()}")},
    },
    "code that makes memory": lambda _: {"data": Code(bytearray, HUGE)},
    "code that copies": copies,
    "a target in the config": configured("schedule", _target_="os.system"),
    "an option named as code": configured("schedule", name="os.system"),
    "a plugin that is not installed": lambda state: {
        "plugins": {"sampler": "ddpm-extras"},
        **configured("sampler", name="midpoint")(state),
    },
    "a plugin named as a path": lambda _: {"plugins": {"sampler": "../ddpm_extras"}},
    "a plugin named as code": lambda _: {"plugins": {"sampler": "__import__('os')"}},
    "a plugin of no group": lambda _: {"plugins": {"__class__": "ddpm-extras"}},
    "an option with a dot": configured("sampler", name="os.path"),
    "an option named as an attribute": configured("sampler", name="__class__"),
    "an expression in the config": configured("train", milestone_every=f"__import__('os').mkdir('{Path('canary')}')"),
    "unknown keys": configured(surprise=1),
    "unknown keys with escapes": configured(**{"a\n\x1b[31m\x9bb": 1}),
    "a very long unknown key": configured(**{"a" * 2**20: 1}),
    "too many channels": configured("model", width=2**40),
    "terabytes by the config": configured("model", width=4096, multipliers=[64, 64]),
    "terabytes by views": enormous,
    "a negative width": configured("model", width=-8),
    "a negative size": configured("dataset", image_size=[-8, 8]),
    "absurd timesteps": configured("schedule", timesteps=10**9),
    "timesteps too large to write": configured("schedule", timesteps=10**5000),
    "timesteps not a number": configured("schedule", timesteps="all"),
    "nan": weights(lambda x: x * NAN),
    "infinite": weights(lambda x: x + float("inf")),
    "half precision": weights(lambda x: x.half()),
    "of another network": weights(lambda x: x[..., :1].clone()),
    "no tensors": weights(lambda x: x.tolist()),
    "meta tensors": weights(lambda x: x.to("meta")),
    "sparse tensors": weights(lambda x: x.to_sparse()),
    "no weights": lambda _: {"ema": {}},
    "nested lists": nested_lists,
    "another format": lambda _: {"format": 1},
    "a format too large to write": lambda _: {"format": 10**5000},
    "a huge step": lambda _: {"step": 10**30},
    "a negative step": lambda _: {"step": -1},
    "nan as seconds": lambda _: {"seconds": NAN},
    "a million classes": lambda _: {"classes": ["a"] * 999_000},
    "many classes": lambda state: {
        "classes": ["a"] * 100_000,
        **configured(conditioning={"name": "class", "dropout": 0.1})(state),
    },
    "numbers as classes": lambda _: {"classes": [1, 2]},
    "classes of an unconditional network": lambda _: {"classes": ["a", "b"]},
    "a conditional network without classes": configured(conditioning={"name": "class", "dropout": 0.1}),
}
"""States that `ddpm-sample` refuses."""

RESUMED: dict[str, Callable[[State], State]] = {
    "moments of other shapes": moments(lambda _: torch.zeros(3)),
    "nan as moments": moments(lambda x: x * NAN),
    "moments of terabytes": moments(lambda _: torch.zeros(()).expand(2**40)),
    "moments missing": lambda _: {"optimizer": {}},
    "invalid losses": lambda state: {"losses": state["losses"] | {"skipped": "many"}},
    "invalid total of losses": lambda state: {"losses": state["losses"] | {"total": None}},
    "no losses": lambda _: {"losses": {}},
    "an invalid scaler": lambda _: {"scaler": {"scale": "x"}},
    "resumed at a huge step": lambda _: {"step": 10**30},
    "resumed with terabytes": enormous,
    "resumed with unknown classes": lambda _: {"classes": ["a", "b"]},
    "resumed without classes": configured(conditioning={"name": "class", "dropout": 0.1}),
    "resumed with code": lambda _: {"losses": Code(os.system, f"touch {canary()}")},
}
"""States from which `ddpm-train` refuses to resume."""


# Functions that write a hostile file `new`, given the valid checkpoint `valid`.


def entries(valid: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(valid) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def write_archive(new: Path, content: dict[str, bytes], bomb: int = 0) -> None:
    """Write an archive of `content`. With `bomb`, its directory declares the pickle as deflated, of `bomb` bytes."""
    with zipfile.ZipFile(new, "w") as archive:
        for name, own in content.items():
            archive.writestr(name, own)
            if bomb and name.endswith(".pkl"):
                archive.filelist[-1].compress_type, archive.filelist[-1].file_size = zipfile.ZIP_DEFLATED, bomb


def replace_entry(valid: Path, new: Path, end: str, content: bytes, name: str | None = None) -> None:
    """Write `valid` with other content, and optionally another name, for the entries whose name ends with `end`."""
    old = entries(valid)
    write_archive(
        new, {name or key if key.endswith(end) else key: content if key.endswith(end) else old[key] for key in old}
    )
    append_checksum(new)


def deflated_zeros() -> bytes:
    """Return `HUGE` zeros, deflated."""
    compressor = zlib.compressobj(wbits=-15)
    part = compressor.compress(bytes(2**24)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return part * (HUGE // 2**24) + compressor.flush()


def write_bomb(valid: Path, new: Path) -> None:
    write_archive(
        new, {key: deflated_zeros() if key.endswith(".pkl") else own for key, own in entries(valid).items()}, HUGE
    )


def zip_bomb(valid: Path, new: Path) -> None:
    write_bomb(valid, new)
    append_checksum(new)


def two_directories(valid: Path, new: Path) -> None:
    """Write an archive with two directories.

    A reader that searches from the end of the file finds a valid one. A reader that uses the stored offset finds a
    bomb.
    """
    write_bomb(valid, new)
    inside = new.read_bytes()
    write_archive(new, entries(valid))
    missing = bytes(len(inside) - new.stat().st_size)  # so that both directories have the same offset in their archives
    write_archive(new, {key: own + missing * key.endswith("/data/0") for key, own in entries(valid).items()})
    outside = new.read_bytes()
    new.write_bytes(inside[:-22] + outside[:-22] + inside[-22:])
    append_checksum(new)


def tensors_out_of_the_file(valid: Path, new: Path) -> None:
    """Truncate the storages, so that the tensors lie beyond the end of the file."""
    state = torch.load(valid, weights_only=True)
    far = {name: torch.zeros(10**5)[-x.numel() :].view(x.shape) for name, x in state["ema"].items()}
    torch.save(state | {"ema": far}, new)
    content = {name: own[:64] if len(own) == 4 * 10**5 else own for name, own in entries(new).items()}
    write_archive(new, content)
    append_checksum(new)


def many_lists(valid: Path, new: Path) -> None:
    """Write many empty lists, which take one byte each in the file and 64 in memory."""
    replace_entry(valid, new, ".pkl", b"\x80\x02](" + b"]" * (MAX_PICKLE - 10) + b"e.")


FILES: dict[str, Callable[[Path, Path], Any]] = {
    "a pickle": lambda _, new: new.write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR."),
    "a pickle with a checksum": lambda _, new: (
        new.write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.\0\0"),
        append_checksum(new),
    ),
    "text": lambda _, new: new.write_text("hello"),
    "empty": lambda _, new: new.touch(),
    "without a checksum": lambda valid, new: torch.save(torch.load(valid, weights_only=True), new),
    "truncated": lambda valid, new: new.write_bytes(valid.read_bytes()[:-100]),
    "zip bomb": zip_bomb,
    "two directories": two_directories,
    "tensors out of the file": tensors_out_of_the_file,
    "a long pickle": lambda valid, new: replace_entry(valid, new, ".pkl", b"\x80\x02](" + b"N" * 2**26 + b"e."),
    "many lists": many_lists,
    "many calls": lambda valid, new: replace_entry(
        valid, new, ".pkl", b"\x80\x02](ccollections\nOrderedDict\nq\0" + b"h\0)R" * (2**21 - 10) + b"e."
    ),
    "a path as the name of an entry": lambda valid, new: replace_entry(valid, new, "/data/0", b"x", "../../../canary"),
    "a root as the name of an entry": lambda valid, new: replace_entry(valid, new, "/data/0", b"x", str(canary())),
    "torchscript": lambda valid, new: replace_entry(valid, new, "/version", b"3", "archive/constants.pkl"),
    "a link to a text": lambda _, new: new.symlink_to(Path(__file__)),
    "a link to nothing": lambda _, new: new.symlink_to(canary()),
    "a link to itself": lambda _, new: new.symlink_to(new),
    "a link to an endless device": lambda _, new: new.symlink_to("/dev/zero"),
    "a pipe": lambda _, new: os.mkfifo(new),
    "a pipe in a run folder": lambda _, new: (
        (new / "checkpoints").mkdir(parents=True),
        os.mkfifo(new / "checkpoints" / "last.pt"),
    ),
}
"""Files that `ddpm-sample` refuses."""

IN_A_PROCESS = ("code", "zip bomb")
"""Files that are tested in a real process even without --full. Starting a process takes seconds."""


METER = f"""
import pathlib, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], timeout={6 * SECONDS})
spent = resource.getrusage(resource.RUSAGE_CHILDREN)
pathlib.Path("spent").write_text(f"{{spent.ru_utime + spent.ru_stime}} {{spent.ru_maxrss}}")
sys.exit(code)
"""
"""A small intermediate process, because the peak memory of a new process includes that of its parent."""


def run_in_process(command: str, *args: str) -> tuple[Result, float, int]:
    """Run a command; return its result, its CPU seconds and its peak memory in KiB."""
    meter = [sys.executable, "-S", "-c", METER, SCRIPTS / f"ddpm-{command}"]
    done = subprocess.run([*meter, *args], capture_output=True, text=True)
    seconds, memory = Path("spent").read_text().split()
    Path("spent").unlink()
    return Result(done.returncode, done.stdout, done.stderr), float(seconds), int(memory)


def assert_refused_in_one_line(result: Result, command: str) -> None:
    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.startswith(f"ddpm-{command}: ")
    assert result.err.endswith("\n")
    assert result.err[:-1].isprintable()
    assert len(result.err) < 1000


def hostile_command(name: str, runs: dict[str, Path], folder: Path) -> list[str]:
    """Write the hostile file `name` into `folder` and return the command that reads it."""
    valid = checkpoint(runs["plain"])
    if name in RESUMED:
        shutil.copytree(runs["plain"], folder / "run")
        for file in (folder / "run" / "checkpoints").iterdir():
            file.unlink()
        change = RESUMED[name](torch.load(valid, weights_only=True))
        edit_checkpoint(valid, checkpoint(folder / "run"), **change)
        return ["train", f"resume={folder / 'run'}"]
    if name in STATES:
        edit_checkpoint(valid, folder / "x.pt", **STATES[name](torch.load(valid, weights_only=True)))
    else:
        FILES[name](valid, folder / "x.pt")
    return ["sample", f"ckpt={folder / 'x.pt'}", "n=1", "out=out"]


@pytest.mark.parametrize("name", [*STATES, *FILES, *RESUMED])
def test_hostile_checkpoint_is_refused(
    name: str, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, run: Run, full: bool, tally: Any
) -> None:
    survived = tally("hostile checkpoints refused")
    folder = tmp_path_factory.mktemp("hostile")
    args = hostile_command(name, runs, folder)
    if full or name in IN_A_PROCESS:
        result, seconds, memory = run_in_process(*args)
        assert memory < GIBIBYTE
    else:
        start = time.process_time()
        result = run(*args)
        seconds = time.process_time() - start
    assert seconds < SECONDS
    assert_refused_in_one_line(result, args[0])
    assert not list(Path.cwd().iterdir())
    assert {path.name for path in folder.iterdir()} == {"run" if name in RESUMED else "x.pt"}
    survived()


def test_class_names_are_escaped_in_the_terminal(runs: dict[str, Path], tmp_path: Path, run: Run) -> None:
    names = ["a\nddpm-sample: all is well", "\x1b[2J\x1b]0;x\x07", "\x9b31m\r", *"bcdefgh"]
    edit_checkpoint(checkpoint(runs["classes"]), tmp_path / "x.pt", classes=names)
    assert_refused_in_one_line(run("sample", "ckpt=x.pt", "class=nobody", "out=out"), "sample")
    result = run("sample", "ckpt=x.pt", "n=4", "out=out")
    assert result.code == 0, result.err
    assert all(line.isprintable() for line in result.err.splitlines())


def test_resume_with_other_class_names_is_rejected(runs: dict[str, Path], tmp_path: Path, run: Run) -> None:
    shutil.copytree(runs["classes"], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    edit_checkpoint(checkpoint(runs["classes"]), checkpoint(tmp_path / "run"), classes=["\x1b[2J\n"] * 10)
    assert_refused_in_one_line(run("train", "resume=run"), "train")


def test_paths_in_a_checkpoint_are_never_opened(runs: dict[str, Path], tmp_path: Path, run: Run) -> None:
    """Check with pipes, because opening one would block forever."""
    valid = checkpoint(runs["plain"])
    for name in ("out", "resume", "root"):
        os.mkfifo(tmp_path / name)
    config = torch.load(valid, weights_only=True)["config"]
    dataset = config["dataset"] | {"root": str(tmp_path / "root")}
    paths = {"out": str(tmp_path / "out"), "resume": str(tmp_path / "resume"), "dataset": dataset}
    edit_checkpoint(valid, tmp_path / "x.pt", config=config | paths)
    result = run("sample", "ckpt=x.pt", "n=1", "out=mine")
    assert result.code == 0, result.err
    assert all((tmp_path / name).is_fifo() for name in ("out", "resume", "root"))


@pytest.mark.parametrize("name", [*OURS, ".hydra/changes.yaml"])
def test_run_folder_with_a_link_is_rejected(
    name: str, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, run: Run, tally: Any
) -> None:
    survived = tally("links in run folders refused")
    precious = tmp_path_factory.mktemp("precious") / "thing"
    shutil.copytree(runs["plain"], tmp_path / "run")
    place = tmp_path / "run" / name
    place.touch() if name not in FOLDERS else place.mkdir(exist_ok=True)
    place.rename(precious)
    file = precious / ".precious.tmp" if name in FOLDERS else precious
    file.write_text("precious")
    before = sorted(precious.parent.rglob("*"))
    place.symlink_to(precious)
    result = run("train", "resume=run", "train.steps=2")
    assert_refused_in_one_line(result, "train")
    assert f"its {name} is a symbolic link" in result.err
    assert sorted(precious.parent.rglob("*")) == before
    assert file.read_text() == "precious"
    survived()


@pytest.mark.parametrize("name", [name for name in OURS if name != "checkpoints"])
def test_run_folder_with_a_pipe_is_rejected(name: str, runs: dict[str, Path], tmp_path: Path, run: Run) -> None:
    shutil.copytree(runs["plain"], tmp_path / "run")
    place = tmp_path / "run" / name
    if place.exists():
        shutil.rmtree(place) if name in FOLDERS else place.unlink()
    os.mkfifo(place)
    result = run("train", "resume=run", "train.steps=2")
    assert_refused_in_one_line(result, "train")
    assert f"its {name} was not written by a run" in result.err


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_run_whose_config_file_cannot_be_replaced_is_rejected(
    kind: str, runs: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    shutil.copytree(runs["plain"], tmp_path / "run")
    config_file = tmp_path / "run" / ".hydra" / "config.yaml"
    config_file.rename(tmp_path / "precious")
    {"pipe": os.mkfifo, "link": lambda path: path.symlink_to(tmp_path / "precious"), "folder": os.mkdir}[kind](
        config_file
    )
    before = (tmp_path / "precious").read_bytes()
    result = run("train", "resume=run", "train.steps=2")
    assert result.code == 2
    assert "ddpm-train: resume=run: its .hydra/config.yaml" in result.err.splitlines()[-1]
    assert (tmp_path / "precious").read_bytes() == before


@pytest.mark.parametrize("kind", ["pipe", "device", "long", "deep"])
def test_invalid_config_files_of_a_run_are_ignored(kind: str, runs: dict[str, Path], tmp_path: Path, run: Run) -> None:
    shutil.copytree(runs["plain"], tmp_path / "run")
    config_file = tmp_path / "run" / ".hydra" / "config.yaml"
    config_file.parent.mkdir(exist_ok=True)
    config_file.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(config_file)
        case "device":
            config_file.symlink_to("/dev/zero")
        case "long":
            config_file.write_text("a: 1\n" * 10**6)
        case "deep":
            config_file.write_text("[" * 10_000)
    start = time.monotonic()
    assert run("sample", "ckpt=run", "n=1", "out=new").code == 0
    assert time.monotonic() - start < SECONDS


FORBIDDEN_CALLS = {"os.system", "os.popen", "eval", "exec", "compile", "__import__", "yaml.unsafe_load"}
FORBIDDEN_IMPORTS = {"pickle", "subprocess", "marshal", "shelve", "dill", "code", "pty"}
PACKAGE_FILES = sorted(Path(ddpm_cli.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("file", PACKAGE_FILES, ids=lambda file: file.stem)
def test_package_executes_no_data(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            assert not {name.split(".")[0] for name in named} & FORBIDDEN_IMPORTS
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in FORBIDDEN_CALLS
            assert not called.startswith(("os.exec", "os.spawn", "subprocess."))
            assert keywords.get("shell") is None
            assert called != "yaml.load" or ast.unparse(node.args[1]) == "SAFE_LOADER"
            assert called != "torch.load" or keywords["weights_only"] == "True"
            assert called not in ("np.load", "numpy.load") or "allow_pickle" not in keywords


def test_the_yaml_loader_makes_no_objects() -> None:
    assert run_folder.SAFE_LOADER in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getcwd []", run_folder.SAFE_LOADER)


def test_torch_writes_zip64_records(runs: dict[str, Path]) -> None:
    """Check that torch writes the records of large archives (ZIP64), because the tests above use the short ones."""
    end = checkpoint(runs["plain"]).read_bytes()[: -(len("ddpm-cli sha256:") + 64)][-98:]
    assert struct.unpack("<4s52x4s16x4s18x", end) == (b"PK\6\6", b"PK\6\7", b"PK\5\6")
