"""The rooms of the house: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddpm_cli

PACKAGE = Path(ddpm_cli.__file__).parent
GROUND = {"errors", "rng", "world", "files", "reading", "options", "config"}
MAY_IMPORT = {
    "cli": {"cli", "evaluation", "exchange", "training", "data", "diffusion", "models", "imaging", "plots", "report"}
    | GROUND,
    "notebook": {"training", "pictures"} | GROUND,
    "exchange": {"exchange", "training", "diffusion"} | GROUND,
    "training": {"training", "data", "diffusion", "models", "imaging", "pictures", "plots"} | GROUND,
    "evaluation": {"evaluation", "training", "data", "diffusion", "imaging", "plots"} | GROUND,
    "data": {"data"} | GROUND,
    "diffusion": {"diffusion"} | GROUND,
    "models": {"models"} | GROUND,
    "report": {"report", "errors", "reading"},
    "pictures": {"imaging", "plots"},
    "plots": {"files", "imaging"},
    "imaging": {"files"},
    "config": {"config", "errors", "options"},
    "options": {"options", "errors"},
    "errors": set(),
    "files": {"errors"},
    "reading": set(),
    "rng": set(),
    "world": {"errors"},
    "__init__": {"notebook"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.Module, top_level: bool = False) -> Iterator[str]:
    """The modules imported; `top_level`: only where importing the file imports them."""
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_go_one_way(file: Path) -> None:
    for name in imports(ast.parse(file.read_text())):
        if name.startswith("ddpm_cli."):
            assert name.split(".")[1] in MAY_IMPORT[room(file)], f"{file} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_hydra_and_omegaconf_only_in_cli(file: Path) -> None:
    roots = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert room(file) == "cli" or not roots & {"hydra", "omegaconf"}


@pytest.mark.parametrize("file", [f for f in FILES if room(f) in {"cli", "config", "options", "errors", "files"}])
def test_no_torch_where_help_must_be_quick(file: Path) -> None:
    tree = ast.parse(file.read_text())
    heavy = {"torch", "torchvision", "numpy", "matplotlib", "PIL", "plotly"}
    assert not {name.split(".")[0] for name in imports(tree, top_level=True)} & heavy
    own = {name for name in imports(tree, top_level=True) if name.startswith("ddpm_cli.")}
    assert {name.split(".")[1] for name in own} <= {"cli", "config", "options", "errors", "files"}


def test_no_object_is_named_by_a_config() -> None:
    """A checkpoint's config is data: nothing in the package instantiates what a string names."""
    for file in FILES:
        text = file.read_text()
        assert "_target_" not in text, file
        assert "instantiate(" not in text, file
        assert "weights_only=False" not in text, file
