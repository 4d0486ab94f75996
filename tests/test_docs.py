"""The commands in the README and in docs/: each is accepted as printed, and links between the pages lead somewhere."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ddpm_cli.cli import train
from ddpm_cli.cli.app.command import load_options
from ddpm_cli.cli.app.overrides import check_overrides, check_single
from ddpm_cli.cli.app.shorthands import expand
from ddpm_cli.config import plugins
from tests.conftest import SCHEMAS, Result, _composed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh(?: quick)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")


def commands(page: Path) -> list[str]:
    """Return the lines with overrides in the shell examples of a page, with names in the place of … and <run>.

    A run that does not exist replaces `latest`, which the commands look up.
    """
    lines = [line for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    found = [match[0] for line in lines if (match := re.search(r"ddpm-(?!report|cli)\w+( [^#|&]*)?", line))]
    return [re.sub(r"<\w+>|…|\blatest\b", "x", line).strip() for line in found if "-sc" not in line]


@pytest.mark.parametrize("line", [line for page in PAGES if page.name != "plugins.md" for line in commands(page)])
def test_command_is_accepted(line: str) -> None:
    accept(line)


def test_commands_of_plugins_are_accepted(tmp_path: Path, plugin_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/plugins.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "mine.py").write_text("\n".join(["from ddpm_cli.api import Metric", *blocks]))
    example = ROOT / "docs/examples/plugin/ddpm_extras"
    monkeypatch.setenv(plugins.VARIABLE, f"{tmp_path / 'mine.py'}:{example}")
    load_options(train.COMMAND)
    lines = commands(page)
    assert len(lines) == 5
    for line in lines:
        accept(line.replace("plugins=[./mine.py] ", ""))


def accept(line: str) -> None:
    """Raise `UserError` unless the command would run."""
    name, *words = shlex.split(line)
    command = name.removeprefix("ddpm-")
    schema = SCHEMAS[command]
    overrides = expand(command, schema, words)
    if "-m" in overrides:
        overrides.remove("-m")
        check_overrides(command, schema, overrides)
    else:
        check_overrides(command, schema, overrides)
        check_single(overrides)
        OmegaConf.to_object(_composed(command, tuple(overrides)))


def test_every_page_has_commands() -> None:
    assert len(commands(PAGES[0])) > 12
    assert all(commands(page) for page in PAGES if page.name == "datasets.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for file, heading in LINK.findall(page.read_text()):
        target = page.parent / file if file else page
        assert target.is_file(), file
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading[1:] in anchors, heading


def test_configuration_is_up_to_date() -> None:
    """docs/configuration.md is what `make docs` writes."""
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "configuration.md").read_text() == module.page(), "run: make docs"


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 220
    assert len(text.encode()) <= 12_000


QUICK = re.compile(r"^```sh quick\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if QUICK.search(page.read_text())], ids=lambda page: page.name)
def test_quick_commands_run_as_printed(page: Path, run: Callable[..., Result]) -> None:
    lines = [line for block in QUICK.findall(page.read_text()) for line in block.splitlines()]
    assert lines
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        result = run(name.removeprefix("ddpm-"), *words)
        assert result.code == 0, f"{line}\n{result.err}"
