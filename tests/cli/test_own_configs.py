"""Config files of a user's own that Hydra cannot read: one line that names the file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ddpm_cli.cli.app.help import _texts_of
from ddpm_cli.cli.app.own_configs import MAX_BYTES, check_configs, search_path
from ddpm_cli.config import EXTRA_CONFIGS
from ddpm_cli.errors import UserError
from tests.conftest import Result

Run = Callable[..., Result]
GLOBAL = b"# @package _global_\n"

WRONG: dict[str, tuple[str, bytes, str]] = {
    "a tab": ("experiment", GLOBAL + b"defaults:\n\t- a\n", "is not readable as YAML (while scanning"),
    "an open bracket": ("experiment", GLOBAL + b"train: {steps: 3\n", "is not readable as YAML (while parsing"),
    "Latin-1": ("experiment", GLOBAL + b"# \xe9t\xe9\n", "line 2 has the byte 0xe9, which is not UTF-8; save it as"),
    "a byte order mark": ("experiment", b"\xef\xbb\xbf" + GLOBAL, "starts with a byte order mark; save it as UTF-8"),
    "UTF-16": ("experiment", (GLOBAL).decode().encode("utf-16"), "starts with a byte order mark; save it as UTF-8"),
    "a byte order mark in a group": ("model", b"\xef\xbb\xbfwidth: 8\n", "starts with a byte order mark"),
    "a null byte": ("experiment", GLOBAL + b"train: {steps: \0}\n", "is not readable as YAML (unacceptable character"),
    "a key twice": ("experiment", GLOBAL + b"train: {steps: 3}\ntrain: {lr: 1}\n", "found duplicate key train"),
    "two documents": ("experiment", GLOBAL + b"a: 1\n---\nb: 1\n", "expected a single document"),
    "a tag": ("experiment", GLOBAL + b"train: !!python/name:os.system\n", "could not determine a constructor"),
    "a broken interpolation": ("experiment", GLOBAL + b"train: {steps: '${'}\n", "is not readable as YAML"),
    "a list": ("experiment", GLOBAL + b"- a\n", "must contain keys with values"),
    "no package": ("experiment", b"train: {steps: 3}\n", "the first line must be: # @package _global_"),
    "no package in a sweep": ("sweep", b"train: {steps: 3}\n", "the first line must be: # @package _global_"),
    "a package with a comment": (
        "experiment",
        b"# @package _global_ # mine\n",
        "the first line must be: # @package _g",
    ),
    "half a package": ("model", b"# @package\nwidth: 8\n", "is not readable as YAML (Expected header format"),
    "a package of a model": (
        "model",
        GLOBAL + b"width: 8\n",
        "# @package _global_: an option of model has no such line",
    ),
    "defaults as a text": ("experiment", GLOBAL + b"defaults: tiny\n", "defaults: must be a list of entries"),
    "defaults as a number": ("experiment", GLOBAL + b"defaults: [3]\n", "defaults: must be a list of entries"),
    "two defaults in one": (
        "experiment",
        GLOBAL + b"defaults: [{a: b, c: d}]\n",
        "defaults: must be a list of entries",
    ),
    "an option as a value": (
        "experiment",
        GLOBAL + b"model: tiny\n",
        "model: tiny: belongs below defaults: as - overrid",
    ),
    "a launcher": ("hydra/launcher", b"n_jobs: [\n", "is not readable as YAML"),
    "too large": ("experiment", GLOBAL + b"#" * MAX_BYTES, "has more than 1048576 bytes; is it a config file?"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_hydra_cannot_read_are_named(kind: str, tmp_path: Path) -> None:
    group, content, said = WRONG[kind]
    file = tmp_path / group / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        check_configs([tmp_path], ["train.lr=1", f"{group}=mine"])
    message = str(raised.value)
    assert message.startswith(f"{file}: ")
    assert said in message
    assert "\n" not in message
    check_configs([tmp_path], [f"{group}=other"])  # which does not mention the file


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment/mine.yaml"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "broken link": lambda: path.symlink_to("nowhere")}
    make[kind]()
    with pytest.raises(UserError, match=r"mine.yaml: is not a file; remove it"):
        check_configs([tmp_path], ["experiment=mine"])


def test_files_that_another_one_includes_are_checked(tmp_path: Path) -> None:
    (tmp_path / "experiment/deep").mkdir(parents=True)
    (tmp_path / "experiment/mine.yaml").write_bytes(GLOBAL + b"defaults:\n  - deep/base\n")
    (tmp_path / "experiment/deep/base.yaml").write_bytes(GLOBAL + b"a: [\n")
    with pytest.raises(UserError, match=r"deep/base.yaml: is not readable as YAML"):
        check_configs([tmp_path], ["experiment=mine"])


def test_sound_files_are_accepted(tmp_path: Path) -> None:
    """Windows line ends, letters beyond ASCII, an empty file, and what is in no group."""
    for name, content in {
        "experiment/mine.yaml": b"# @package _global_\r\ntrain: {steps: 3}  # \xc3\xa9\r\n",
        "experiment/empty.yaml": GLOBAL,
        "model/mine.yaml": b"# @package _group_\nwidth: 8\n",
        "hydra/launcher/mine.yaml": b"# @package hydra.launcher\nn_jobs: 2\n",
        "notes/mine.yaml": b"[",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    check_configs([tmp_path], ["mine empty"])


def test_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    typed = [f"hydra.searchpath=[file://{tmp_path}/conf,conf,nowhere,pkg://a]", "x=1", "++hydra.searchpath=conf"]
    assert search_path(typed) == [tmp_path / "conf", Path("conf")]


@pytest.fixture
def own_configs() -> Iterator[None]:
    """Forget the folders of --config-dir after a test."""
    yield
    EXTRA_CONFIGS.clear()
    _texts_of.cache_clear()


FROM_HYDRA = {
    "itself": (b"defaults: [itself]\n", "defaults: a file of your own includes itself"),
    "nokey": (b"train: {stepz: 3}\n", "experiment=nokey: sets train.stepz, and there is no such key; correct"),
    "chdir": (b"hydra: {job: {chdir: true}}\n", ""),  # refused when a job starts
    "sound": (b"train: {steps: 3}\n", ""),
}


def test_a_line_and_status_2(run: Run, tmp_path: Path, own_configs: None) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/latin.yaml").write_bytes(GLOBAL + b"# \xe9")
    for name, (content, _) in FROM_HYDRA.items():
        (tmp_path / f"conf/experiment/{name}.yaml").write_bytes(GLOBAL + content)
    for name, (_, said) in FROM_HYDRA.items():
        result = run("train", "--config-dir", "conf", f"experiment={name}", "--cfg", "job")
        assert (result.code, said in result.err) == (2 if said else 0, True), result.err
        assert result.err.count("\n") == (1 if said else 0)
    assert yaml.safe_load(result.out)["train"]["steps"] == 3
    for name in ("itself", "chdir"):
        result = run("train", "--config-dir", "conf", "-m", f"experiment={name}", "train.seed=0,1")
        assert (result.code, result.err.count("\n")) == (2, 1)
    result = run("train", "--config-dir", "conf", "experiment=chdir", "hydra.run.dir=new")
    assert result.err.startswith("ddpm-train: hydra.job.chdir=true: must be false, because relative paths start where")
    result = run("train", "--config-dir", "conf", "experiment=latin")
    assert result.err.startswith("ddpm-train: conf/experiment/latin.yaml: line 2 has the byte 0xe9")
    assert run("train", "--config-dir", "conf", "--help", "experiment=latin").code == 0


@pytest.mark.parametrize("typed", [["hydra.searchpath=[nosuch://x]"], ["--experimental-rerun", "nothing.pickle"]])
def test_options_of_hydra_end_in_a_line(typed: list[str], run: Run) -> None:
    result = run("train", *typed, "--cfg", "job")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
