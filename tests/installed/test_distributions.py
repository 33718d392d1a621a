"""What the pyproject.toml of every distribution of this repository says, beside what lies there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from trove_classifiers import classifiers as known_classifiers

import latentkit
from latentkit.plugins.new_plugin import new_plugin

ROOT = Path(__file__).parents[2]
PARTS = (*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml"))
FOLDERS = [ROOT, *sorted(path.parent for path in PARTS)]
EXAMPLES = [folder for folder in FOLDERS if folder.parent.name == "examples"]
URL = "https://github.com/latentkit/latentkit"


def read_project(folder: Path) -> dict[str, Any]:
    """The table [project] of a distribution."""
    project: dict[str, Any] = tomllib.loads(
        (folder / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    return project


def test_there_are_distributions_of_every_kind() -> None:
    assert len(FOLDERS) >= 11
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_distribution_gives_its_license(folder: Path) -> None:
    project = read_project(folder)
    assert project["license"] == "Apache-2.0"
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "LICENSE" in project["license-files"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_distribution_says_whose_it_is_and_where(folder: Path) -> None:
    project = read_project(folder)
    assert project["authors"] == [{"name": "latentkit maintainers"}]
    place = "" if folder == ROOT else f"/tree/main/{folder.relative_to(ROOT).as_posix()}"
    assert project["urls"]["Homepage"] == URL + place
    if folder not in EXAMPLES:
        assert project["keywords"]
        assert set(project["classifiers"]) <= known_classifiers
        assert {"Typing :: Typed", "Programming Language :: Python :: 3.14"} <= set(
            project["classifiers"]
        )
    else:
        assert project["classifiers"] == ["Private :: Do Not Upload"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_distribution_is_typed(folder: Path) -> None:
    name = "latentkit" if folder == ROOT else folder.name.replace("-", "_")
    assert (folder / name / "py.typed").is_file()


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda folder: folder.name)
def test_plugin_depends_on_the_package_by_the_name_of_its_distribution(folder: Path) -> None:
    names = [Requirement(line).name for line in read_project(folder)["dependencies"]]
    assert names[0] == read_project(ROOT)["name"] == "latentkit-diffusion"
    assert "latentkit" not in names


def test_scaffold_depends_on_the_package_and_names_a_license(tmp_path: Path) -> None:
    project = read_project(new_plugin("soft-edges", "loss", tmp_path))
    assert project["dependencies"] == [f"latentkit-diffusion>={latentkit.__version__}"]
    assert project["license"] == "Apache-2.0"


def test_version_is_that_of_the_module() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["dynamic"] == ["version"]
    file = ROOT / pyproject["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{latentkit.__version__}"' in file.read_text(encoding="utf-8")


def test_photographs_of_the_shipped_weights_are_attributed() -> None:
    assert "NOTICE" in read_project(ROOT)["license-files"]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for words in (
        "tiny-kl-16",
        "DreamBooth",
        "https://creativecommons.org/licenses/by/4.0/",
        "https://unsplash.com/license",
    ):
        assert words in notice


def test_lowest_constraints_are_the_lower_bounds() -> None:
    project = read_project(ROOT)
    wanted = [
        Requirement(line)
        for line in (*project["dependencies"], *project["optional-dependencies"]["demo"])
    ]
    bounds = {
        one.name: Version(next(iter(one.specifier)).version) for one in wanted if one.marker is None
    }
    pinned = {}
    for line in (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w-]+)==([\w.]+)", line):
            pinned[match[1]] = Version(match[2])
    assert pinned.pop("torch") >= bounds.pop("torch")  # see the comment there
    assert pinned == bounds
