"""The sdist and the wheel: their contents, and the metadata checks of a package index."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from that sdist alone."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "configs", "ddpm_cli"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "SetuptoolsDeprecationWarning" not in made.stdout + made.stderr
    return folder


def test_twine_check(dist: Path) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 2


def test_wheel_and_sdist_contain_all_files(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    kinds = ("*.py", "page.*")
    modules = {str(path.relative_to(REPOSITORY)) for kind in kinds for path in (REPOSITORY / "ddpm_cli").rglob(kind)}
    configs = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert modules | configs | {"ddpm_cli/py.typed", "LICENSE", "README.md"} <= inside
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert inside == modules | {f"ddpm_cli/{name}" for name in configs} | {
        "ddpm_cli/py.typed",
        "ddpm_cli/configs/__init__.py",
    }
    fields = HeaderParser().parsestr(metadata)
    assert (fields["License-Expression"], fields["Requires-Python"]) == ("MIT", ">=3.10")


def test_the_citation_is_of_this_version(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert wheel.name.startswith(f"ddpm_cli-{citation['version']}-")
    assert citation["license"] == "MIT"
    assert f"\n## {citation['version']}\n" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_workflow_covers_the_versions_that_are_claimed() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    claimed = (REPOSITORY / "pyproject.toml").read_text()
    assert [version for version in versions if f'"Programming Language :: Python :: {version}"' in claimed] == versions
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
