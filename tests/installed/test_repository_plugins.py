"""Every package of plugins/ and examples/ in one environment: listed together, in a blink, without
torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = sorted([*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml")])
HEAVY = {
    "torch",
    "diffusers",
    "accelerate",
    "datasets",
    "numpy",
    "pyarrow",
    "transformers",
    "PIL",
    "ray",
    "av",
    "nibabel",
    "soundfile",
}

LIST = f"""
import contextlib, io, json, sys
from latentkit.cli import main
with contextlib.redirect_stdout(io.StringIO()) as listing:
    code = main(["plugins", "--json"])
print(json.dumps([code, json.loads(listing.getvalue()), sorted({HEAVY!r} & set(sys.modules))]))
"""


def read_project(path: Path) -> dict[str, Any]:
    """The table [project] of a pyproject.toml."""
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Any], list[str]]:
    """What `latentkit plugins --json` prints with all of them installed, in place, and which heavy
    modules it loads.
    """
    site = tmp_path_factory.mktemp("site-packages")
    for path in PROJECTS:
        project = read_project(path)
        folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        entries = "".join(
            f"{name} = {value}\n" for name, value in project["entry-points"]["latentkit"].items()
        )
        (folder / "entry_points.txt").write_text(f"[latentkit]\n{entries}")
    paths = [str(site), *(str(path.parent) for path in PROJECTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LATENTKIT_DISABLE": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", LIST], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code, listing, heavy = json.loads(done.stdout)
    assert code == 0
    return listing, heavy


def test_every_package_provides_something_and_none_has_a_problem(
    listed: tuple[Mapping[str, Any], list[str]],
) -> None:
    names = {read_project(path)["name"] for path in PROJECTS}
    assert len(names) == len(PROJECTS) >= 2
    assert names <= {row["provider"] for row in listed[0]["plugins"]}
    assert [problem for problem in listed[0]["problems"] if problem["distribution"] in names] == []


def test_listing_all_of_them_loads_nothing_heavy(
    listed: tuple[Mapping[str, Any], list[str]],
) -> None:
    assert listed[1] == []
