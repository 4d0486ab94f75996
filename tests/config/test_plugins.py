"""Plugins in files and packages: what they add, and how mistakes in them are reported."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_cli.config import plugins
from tests.conftest import TINY, Result, unload_plugins

Run = Callable[..., Result]

PLAIN = """
from dataclasses import dataclass
from ddpm_cli.api import Loss, Metric, Sampler, Step, implements

@dataclass(kw_only=True)
class Plain(Sampler):
    name: str = "plain"
    steps: int | None = 4
    sections: list[int] | None = None
    spacing: str = "time"
    thresholding: str = "clip"
    share: float = 1.0

@implements(Plain)
def plain(denoise, x, process, pairs, noise, share):
    for t, t_prev in pairs:
        x0 = denoise(x, t, None).x0
        x = x + share * (x0 - x)
        yield Step(t, x, x0)

@dataclass(kw_only=True)
class Brightness(Metric):
    name: str = "brightness"

@implements(Brightness)
def brightness(samples, reference, seed):
    return samples.float().mean() / reference.float().mean()
"""
OPTION = """
from dataclasses import dataclass
from ddpm_cli.api import {base}

@dataclass(kw_only=True)
class Mine({base}):
    name: str = "{name}"
"""


@pytest.fixture
def plain(tmp_path: Path, plugin_state: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a plugin of one file and name it in `DDPM_PLUGINS`."""
    path = tmp_path / "mine.py"
    path.write_text(PLAIN)
    monkeypatch.setenv(plugins.VARIABLE, str(path))
    return path


def test_file_adds_options_without_yaml(plain: Path, run: Run) -> None:
    shown = run("sample", "--help", "sampler=plain").out
    assert "steps: 4" in shown
    assert "share: 1.0" in shown
    trained = run("train", *TINY, "sampler=plain", "sampler.steps=2", "train.steps=2", "out=run")
    assert trained.code == 0, trained.err
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["plugins"] == {"sampler": "mine.py"}
    assert run("sample", "ckpt=run", "n=2", "out=a").code == 0
    assert run("sample", "ckpt=run", "n=2", "out=b", "sampler=plain", "sampler.share=0.5").code == 0
    assert run("train", "resume=run", "train.steps=3").code == 0
    wrong = run("sample", "ckpt=run", "sampler=plan")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "heun, plain or unipc; did you mean sampler=plain?" in wrong.err


def test_typed_plugins_are_loaded(tmp_path: Path, plugin_state: None, run: Run) -> None:
    (tmp_path / "typed.py").write_text(PLAIN)
    assert "plain" in run("train", "plugins=[./typed.py]", "--help", "sampler").out


@pytest.mark.parametrize("typed", ["plugins=", "plugins=[", "plugins=[]", "plugins=[1]", "plugins=[a.py,{}]"])
def test_typed_plugins_are_a_list_of_files(typed: str, plugin_state: None, run: Run) -> None:
    result = run("train", typed)
    assert (result.code, result.err) == (
        2,
        f"ddpm-train: {typed}: must be a file or a list of files, as in plugins=[./mine.py]\n",
    )


def test_metric_is_computed_for_samples_and_real_images(plain: Path, run: Run, tmp_path: Path) -> None:
    assert run("train", *TINY, "train.steps=2", "out=run").code == 0
    result = run("evaluate", "ckpt=run", "metrics=[brightness]", "n=10", "out=new", "device=cpu")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "new/evaluation.json").read_text())
    assert 0 < record["metrics"]["brightness"] < 10
    assert record["floor"]["brightness"] == pytest.approx(1, abs=0.5)
    assert record["classifier"] is None
    assert "brightness" in run("evaluate", "ckpt=run", "metrics=[none]").err
    for topics in ([], ["metrics"]):
        assert "of images: nll (bits/dim); of plugins: brightness" in run("evaluate", "--help", *topics).out


def test_checkpoint_names_a_missing_plugin(plain: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", *TINY, "sampler=plain", "train.steps=2", "out=run").code == 0
    assert run("export", "ckpt=run", "format=safetensors", "out=new").code == 0
    monkeypatch.setenv(plugins.VARIABLE, "")
    unload_plugins()
    for command in (["sample", "ckpt=run"], ["train", "resume=run"], ["sample", "ckpt=new/model.safetensors"]):
        refused = run(*command, "device=cpu")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert (
            "sampler=plain: belongs to the plugin mine.py, which is not installed; install it, or name" in refused.err
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def", "cannot be loaded (SyntaxError: "),
        ("import nothing_here", "cannot be loaded (ModuleNotFoundError: No module named 'nothing_here')"),
        ("1 / 0", "cannot be loaded (ZeroDivisionError: division by zero); correct or uninstall it"),
        (
            OPTION.format(base="Loss", name="l2"),
            "loss=l2: there is an option of this name already; rename the plugin's",
        ),
        (OPTION.format(base="Metric", name="fid"), "metric=fid: there is an option of this name already"),
        (OPTION.format(base="Loss", name="a.b"), "loss=a.b: names consist of a-z, 0-9 and _; rename the option"),
        (OPTION.format(base="Loss", name="__class__"), "loss=__class__: names consist of a-z"),
        (
            OPTION.format(base="Schedule", name="mine"),
            "configs/schedule/mine.yaml: no such file; write it, or give defaults to timesteps of",
        ),
        (
            OPTION.format(base="Loss", name="mine"),
            "loss=mine: has no implementation; decorate one with @implements(Mine)",
        ),
        (
            PLAIN.replace("noise, share)", "noise, shares)"),
            "sampler=plain: its implementation must take denoise, x, process, pairs, noise, and by name only fields of "
            "Plain (missing a required argument: 'shares')",
        ),
        (
            PLAIN.replace("reference, seed)", "reference)"),
            "metric=brightness: its implementation must take samples, reference, seed, and by name only",
        ),
    ],
)
def test_mistake_in_a_plugin_is_one_line(
    source: str, message: str, tmp_path: Path, plugin_state: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "broken.py"))
    for command in (["train", "--help"], ["report", "."]):
        result = run(*command)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert f"ddpm-{command[0]}: plugin broken.py: {message}" in result.err


def test_yaml_of_a_built_in_option_is_refused(
    tmp_path: Path, plugin_state: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/__init__.py").touch()
    (tmp_path / "broken/configs/model").mkdir(parents=True)
    (tmp_path / "broken/configs/model/small.yaml").touch()
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "broken"))
    assert "plugin broken: configs/model/small.yaml: there is a file of this name already" in run("train").err


@pytest.mark.parametrize("name", ["none.py", "json.py", "a-b.py", "text.txt"])
def test_files_that_are_no_modules_are_refused(
    name: str, tmp_path: Path, plugin_state: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for existing in ("json.py", "a-b.py", "text.txt"):
        (tmp_path / existing).touch()
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / name))
    result = run("train", "--help")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"DDPM_PLUGINS={tmp_path}/{name}: " in result.err


def test_slow_plugin_is_named(
    tmp_path: Path, plugin_state: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleepy.py").write_text("import time\ntime.sleep(0.25)\n")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "sleepy.py"))
    plugins.load_plugins()
    (message,) = caplog.messages
    assert re.fullmatch(r"plugin sleepy.py: takes \d+\.\d s to load; import what is slow where it is used", message)


def test_error_in_a_plugin_names_it_and_the_line(plain: Path, run: Run) -> None:
    plain.write_text(PLAIN.replace("    return samples", "    1 / 0\n    return samples"))
    assert run("train", *TINY, "train.steps=1", "out=run").code == 0
    result = run("evaluate", "ckpt=run", "metrics=[brightness]", "n=10", "out=new", "device=cpu")
    assert (result.code, result.err.splitlines()[-1]) == (
        1,
        "ddpm-evaluate: plugin mine.py (mine.py, line 27): ZeroDivisionError: division by zero; "
        "HYDRA_FULL_ERROR=1 shows the traceback",
    )
    assert "Traceback" not in result.err


def test_missing_implementation_is_one_line(plain: Path, run: Run, tmp_path: Path) -> None:
    text = OPTION.format(base="Loss", name="mine").replace("    name", "    implementation = 'nowhere:loss'\n    name")
    plain.write_text(text)
    result = run("train", *TINY, "loss=mine", "out=run")
    assert (result.code, result.err.splitlines()[-1][:80]) == (
        2,
        "ddpm-train: loss=mine: nowhere:loss, which implements it, cannot be imported (No",
    )
    assert not (tmp_path / "run").exists()
