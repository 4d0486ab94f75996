"""The commands in the README and in docs/: each is accepted as printed, and links between the pages lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ddpm_cli.cli.app.overrides import check_overrides, check_single
from ddpm_cli.cli.app.shorthands import expand
from tests.conftest import SCHEMAS, _composed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")


def commands(page: Path) -> list[str]:
    """Return the lines with overrides in the shell examples of a page, with names in the place of … and <run>."""
    lines = [line for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    found = [match[0] for line in lines if (match := re.search(r"ddpm-(?!report|cli)\w+( [^#|&]*)?", line))]
    return [re.sub(r"<\w+>|…", "x", line).strip() for line in found if "-sc" not in line]


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page)])
def test_command_is_accepted(line: str) -> None:
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
    assert len(commands(PAGES[0])) > 15
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
