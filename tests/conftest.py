"""Shared test helpers: compose configs, run commands in this process, and keep the suite fast.

- Figures are replaced by a stub, because drawing one takes longer than training a tiny network. Tests that need real
  figures have the marker `figures`.
- Hydra composes configs faster, see `fast_composition`.
- The FLOPs in the summary table of a run are counted once per network.
- Python searches for cyclic garbage less often: with torch imported, that takes a quarter of the time of a command.
"""

import functools
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ddpm_cli.checkpoints.checksum import append_checksum
from ddpm_cli.cli import evaluate, export, forward, import_, report, sample, train
from ddpm_cli.cli.app import command as app
from ddpm_cli.cli.app.help import _texts_of
from ddpm_cli.cli.app.overrides import known_keys
from ddpm_cli.config import (
    EXTRA_CONFIGS,
    GROUPS,
    Ddim,
    Ddpm,
    DpmPp2MSde,
    Edm,
    EvaluateConfig,
    ExportConfig,
    ForwardConfig,
    ImportConfig,
    Option,
    SampleConfig,
    Sampler,
    TrainConfig,
    UniPc,
    option_name,
    plugins,
    registry,
)
from ddpm_cli.files import write
from ddpm_cli.images import plots
from ddpm_cli.training import summary_table
from tests import fast_composition

torch.set_num_threads(1)
gc.set_threshold(50_000, 20, 20)
fast_composition.install()
register_schemas = app.register_schemas

SCHEMAS = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "forward": ForwardConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "import": ImportConfig,
}
MAINS = {
    "train": train.main,
    "sample": sample.main,
    "forward": forward.main,
    "evaluate": evaluate.main,
    "report": report.main,
    "export": export.main,
    "import": import_.main,
}

TINY = [
    "dataset=digits",
    "model=tiny",
    "model.width=8",
    "model.attention=[none,none]",
    "schedule.timesteps=50",
    "sampler.steps=3",
    "train.batch_size=8",
    "train.samples=4",
    "train.precision=fp32",
    "device=cpu",
]
"""Overrides of a run of about a second: a network of a few thousand parameters on 8x8 digits."""

TINY_POINTS = [
    "dataset=swiss_roll",
    "dataset.points=100",
    "model=mlp",
    "model.width=8",
    "model.blocks=1",
    "schedule.timesteps=50",
    "sampler.steps=3",
    "sampler.thresholding=none",
    "train.batch_size=8",
    "train.samples=4",
    "train.precision=fp32",
    "device=cpu",
]
"""Overrides of a similar run with a network for points."""


@functools.cache
def _composed(command: str, overrides: tuple[str, ...]) -> DictConfig:
    register_schemas(command, SCHEMAS[command])
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        return hydra.compose(command, list(overrides))


def composed(*overrides: str, command: str = "train") -> Any:
    """Return the checked config of `ddpm-<command> <overrides>`, a new object for each call."""
    return OmegaConf.to_object(_composed(command, overrides))


def _stub_of_a_figure() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 50).save(buffer, format="PNG")
    return buffer.getvalue()


STUB = _stub_of_a_figure()
SAVE_FIGURE, COUNT_GFLOPS = plots._save_figure, summary_table._gflops
GFLOPS: dict[str, float] = {}


def _gflops_once(config: TrainConfig, classes: list[str]) -> float:
    key = repr((config.model, config.dataset.shape, config.variance, len(classes)))
    if key not in GFLOPS:
        GFLOPS[key] = COUNT_GFLOPS(config, classes)
    return GFLOPS[key]


plots._save_figure = lambda figure, path: write(path, STUB)
summary_table._gflops = _gflops_once


@pytest.fixture(autouse=True)
def _real_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("figures"):
        monkeypatch.setattr(plots, "_save_figure", SAVE_FIGURE)


def train_into(folder: Path, *overrides: str) -> Path:
    """Train in `folder` and return it, for fixtures that several tests share."""
    setup_globals()
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": {"overrides": {"task": []}}})  # type: ignore[assignment]
    train.run(composed(*overrides), folder)
    return folder


def a_sampler(kind: type[Sampler] = Ddpm, **changes: Any) -> Any:
    """Return the options of a sampler of `kind` over all timesteps with clipping, updated by `changes`."""
    plain: dict[str, Any] = {"steps": None, "sections": None, "spacing": "time", "thresholding": "clip"}
    own: dict[type[Sampler], dict[str, Any]] = {
        Ddim: {"eta": 0.0},
        DpmPp2MSde: {"eta": 1.0},
        Edm: {"s_churn": 30.0, "s_tmin": 0.01, "s_tmax": 1.0, "s_noise": 1.0},
        UniPc: {"order": 2},
    }
    return kind(**(plain | own.get(kind, {}) | changes))


def edit_checkpoint(old: Path, new: Path, **changes: Any) -> Path:
    """Write a copy of checkpoint `old` with some keys changed and a valid checksum, as another program could."""
    torch.save(torch.load(old, weights_only=True) | changes, new)
    append_checksum(new)
    return new


def unload_plugins() -> None:
    """Forget all options that are defined outside ddpm_cli, and their modules."""
    outside = [option for options in GROUPS.values() for option in options if not is_built_in(option)]
    for option in outside:
        GROUPS[next(base for base, options in GROUPS.items() if option in options)].remove(option)
        registry._IMPLEMENTATIONS.pop(option, None)
        ConfigStore.instance().repo.get(option.group, {}).pop(f"{option_name(option)}.yaml", None)
    for module in {option.__module__ for option in outside} | {plugin.module for plugin in plugins.LOADED}:
        sys.modules.pop(module, None)
    for known in (EXTRA_CONFIGS, plugins.LOADED, plugins.WITHOUT_YAML):
        known.clear()
    for cached in (_texts_of, known_keys, register_schemas):
        cached.cache_clear()
    fast_composition.forget()


def is_built_in(option: type[Option]) -> bool:
    return option.__module__.startswith("ddpm_cli.")


@pytest.fixture
def plugin_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins that a test loads, after it."""
    unload_plugins()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield
    unload_plugins()


@dataclass
class Result:
    """Exit status and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process from the empty folder `tmp_path`: `run("train", "train.steps=3")`."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *overrides: str) -> Result:
        monkeypatch.setattr(sys, "argv", [f"ddpm-{command}", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        code = 0
        try:
            MAINS[command]()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
            os.environ.pop("HYDRA_FULL_ERROR", None)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run all trials of tests/faults and tests/fuzz")
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: only with --full")
    config.addinivalue_line("markers", "slow: only with --slow (make test-all); a faster test covers the same code")
    config.addinivalue_line("markers", "figures: draws figures instead of writing a stub")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in ("full", "slow"):
        if item.get_closest_marker(name) and not item.config.getoption(f"--{name}"):
            pytest.skip(f"only with --{name}")


SLOWEST_FILES = (
    "faults/",
    "distributed/",
    "cli/test_sweep",
    "cli/test_install",
    "fuzz/",
    "test_experiments",
    "report/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files, so that all workers finish at about the same time."""

    def place(item: pytest.Item) -> int:
        return next((i for i, part in enumerate(SLOWEST_FILES) if f"tests/{part}" in item.nodeid), len(SLOWEST_FILES))

    items.sort(key=place)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run all trials instead of a selection."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str], Callable[[], None]]:
    """Count trials: `survived = tally("killed")`, then `survived()` after each; totals are printed at the end."""

    def kind(name: str) -> Callable[[], None]:
        record_property(name, 0)
        return lambda: record_property(name, 1)

    return kind


def pytest_terminal_summary(terminalreporter: Any) -> None:
    totals: dict[str, list[int]] = {}
    for outcome in ("passed", "failed"):
        for ended in terminalreporter.getreports(outcome):
            for name in dict(ended.user_properties):
                passed, failed = totals.get(name, (0, 0))
                passed += sum(count for kind, count in ended.user_properties if kind == name)
                totals[name] = [passed, failed + (outcome == "failed")]
    for name, (passed, failed) in sorted(totals.items()):
        terminalreporter.write_line(f"{name}: {passed} passed, {failed} failed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path_factory.mktemp("cache")))
