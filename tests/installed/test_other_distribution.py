"""The distribution `latentkit` of another project in one environment with ours: said plainly.

Both are real wheels, installed by pip one after the other into an environment of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "latentkit"
version = "0.2.1"
[tool.hatch.build.targets.wheel]
packages = ["latentkit"]
"""
RECIPE = """
task: encode
source: {use: sample-photos}
modality: {use: image}
encoder: {use: tiny-kl}
output: {path: out}
"""
OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation"]
ADVICE = "pip uninstall -y latentkit latentkit-diffusion && pip install latentkit-diffusion"


@dataclass(frozen=True)
class Environment:
    """An environment, and the wheels that go into it."""

    python: Path
    ours: Path
    others: Path

    def pip(self, *arguments: object) -> None:
        line = [sys.executable, "-m", "pip", f"--python={self.python}", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def install(self, wheel: Path) -> None:
        self.pip("install", "--quiet", "--force-reinstall", *OFFLINE, wheel)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The command, with the installed packages in sight and not their sources."""
        line = [str(self.python), "-P", "-m", "latentkit", *map(str, arguments)]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(line, env=own, capture_output=True, text=True, check=False)


def build_wheel(project: Path, folder: Path) -> Path:
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        *OFFLINE,
        f"--wheel-dir={folder}",
        project,
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.iterdir()
    return wheel


def make_environment(folder: Path) -> Path:
    """Return the interpreter of an empty environment that sees what is installed here, but no clone.

    A line of a .pth file is a path; the .pth files in there, which lead to a clone, are not read.
    """
    venv.create(folder, symlinks=True)
    (own,) = folder.glob("lib/python3*/site-packages")
    (own / "behind.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with neither of the two."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "project" / "latentkit").mkdir(parents=True)
    (folder / "project" / "pyproject.toml").write_text(PROJECT)
    (folder / "project" / "latentkit" / "__init__.py").write_text("class Client: ...\n")
    ours = build_wheel(ROOT, folder / "ours")
    others = build_wheel(folder / "project", folder / "theirs")
    return Environment(make_environment(folder / "environment"), ours, others)


def test_alone_nothing_is_said(environment: Environment) -> None:
    environment.install(environment.ours)
    assert environment.run("--version").stdout.startswith("latentkit ")
    assert json.loads(environment.run("plugins", "--json").stdout)["problems"] == []


def test_the_other_installed_last_is_named_by_every_command(environment: Environment) -> None:
    environment.install(environment.ours)
    environment.install(environment.others)
    for words in (["--help"], ["plugins"], ["inspect", "nothing"], []):
        done = environment.run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "another project's distribution latentkit 0.2.1 is installed too" in done.stderr
        assert done.stderr.endswith(f"{ADVICE}\n")
        assert "Traceback" not in done.stderr


def test_ours_installed_last_works_and_names_the_other(
    environment: Environment, tmp_path: Path
) -> None:
    environment.install(environment.others)
    environment.install(environment.ours)
    assert environment.run("--version").stdout.startswith("latentkit ")
    (problem,) = json.loads(environment.run("plugins", "--json").stdout)["problems"]
    assert (problem["distribution"], problem["version"]) == ("latentkit", "0.2.1")
    assert ADVICE in problem["cause"]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = environment.run("check", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "warning: another project's distribution latentkit 0.2.1 is installed too" in done.stdout


def test_a_file_that_the_other_took_along_is_named(environment: Environment) -> None:
    environment.install(environment.others)
    environment.install(environment.ours)
    environment.pip("uninstall", "--quiet", "--yes", "latentkit")
    done = environment.run("--version")
    assert done.returncode == 2
    assert "__init__.py is missing or another project's. Remove both" in done.stderr
