"""Import directions between the packages, checked in the source files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddpm_cli

PACKAGE = Path(ddpm_cli.__file__).parent
LAYERS = [
    {"rng", "errors", "files", "shell", "untrusted_files"},
    {"config", "distributed"},
    {"diffusion", "models", "data", "images"},
    {"sampling", "averages", "checkpoints", "tracking"},
    {"training", "evaluation", "report", "export", "sweeps"},
    {"notebook", "cli", "api", "commands"},
]
"""A package may import its own layer and those above it in this list."""
SEPARATE = [{"diffusion", "models"}]
"""Packages of one layer that must not import each other."""
HEAVY = {"torch", "torchvision", "numpy", "matplotlib", "PIL", "plotly", "scipy"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.Module, top_level: bool = False) -> Iterator[str]:
    """Yield the modules that a file imports; with `top_level`, only those imported when the file is imported."""
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if name in rooms)


def module_file(name: str) -> Path | None:
    """Return the file of `ddpm_cli.package.module` or `ddpm_cli.package.module.attribute`; None outside ddpm_cli."""
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
        path = PACKAGE.joinpath(*parts[1:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if parts[0] == "ddpm_cli" and end > 1 and file.is_file():
                return file
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    own = room(file)
    for name in imports(ast.parse(file.read_text())):
        if not name.startswith("ddpm_cli.") or own == "__init__":
            continue
        other = name.split(".")[1]
        assert layer(other) <= layer(own), f"{file} imports {name}"
        assert own == other or {own, other} not in SEPARATE, f"{file} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_cli_imports_hydra(file: Path) -> None:
    roots = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert room(file) == "cli" or not roots & {"hydra", "omegaconf"}


@pytest.mark.parametrize(
    "file", [file for file in FILES if room(file) in {"cli", "config"}], ids=lambda file: file.stem
)
def test_importing_a_command_imports_no_torch(file: Path) -> None:
    """`--help` and completion must answer at once, so importing these modules must not import torch."""
    seen, left = set(), [file]
    while left:
        current = left.pop()
        if current in seen:
            continue
        seen.add(current)
        for name in imports(ast.parse(current.read_text()), top_level=True):
            assert name.split(".")[0] not in HEAVY, f"{current} imports {name}"
            if (found := module_file(name)) is not None:
                left.append(found)


def test_no_object_is_named_by_a_config() -> None:
    """A checkpoint's config is data: nothing in the package instantiates a class named by a string."""
    for file in FILES:
        text = file.read_text()
        assert "_target_" not in text, file
        assert "instantiate(" not in text, file
        assert "weights_only=False" not in text, file
