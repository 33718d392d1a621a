"""`latentkit plugins new` of each kind: built as a wheel, installed into an environment, found,
tested, linted and typed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from latentkit.plugins import KINDS
from latentkit.plugins.new_plugin import MAX_NAME, new_plugin

NAMES = {
    "source": "x",
    "modality": "my-modality",
    "encoder": "latentkit-dino-2b-encoder",
    "loss": "a-name-as-long-as-they-may-be-and-a-loss",
    "executor": "executor",
    "exporter": "half-precision",
    "metric": "metric",
    "task": "channel-means",
    "command": "list-rows",
}


@dataclass(frozen=True)
class Environment:
    """Where the packages were made, by kind, and the interpreter of the environment that they are
    installed in.
    """

    folders: Mapping[str, Path]
    python: Path

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A module in the environment, with the installed packages in sight and not their sources.
        """
        line = [str(self.python), "-P", "-m", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd)


def make_environment(folder: Path) -> Path:
    """An empty environment whose interpreter sees, behind its own, everything that is installed
    here.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    here = sysconfig.get_path("purelib")
    (Path(own) / "behind.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return python


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One package of each kind, built and installed."""
    parent = tmp_path_factory.mktemp("scaffolds")
    folders = {kind: new_plugin(name, kind, parent / "packages") for kind, name in NAMES.items()}
    python = make_environment(parent / "environment")
    options = [
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--disable-pip-version-check",
    ]
    line = [
        sys.executable,
        "-m",
        "pip",
        f"--python={python}",
        "install",
        *options,
        *map(str, folders.values()),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Environment(folders, python)


def test_there_is_a_package_of_each_kind() -> None:
    assert set(NAMES) == set(KINDS)
    assert max(len(name) for name in NAMES.values()) == MAX_NAME


def test_every_package_is_listed_without_a_problem(environment: Environment) -> None:
    listing = json.loads(
        environment.run("latentkit", "plugins", "--json", cwd=environment.python.parent).stdout
    )
    found = {(row["kind"], row["name"], row["provider"]) for row in listing["plugins"]}
    names = {kind: name.removeprefix("latentkit-") for kind, name in NAMES.items()}
    assert found >= {(kind, name, f"latentkit-{name}") for kind, name in names.items()}
    assert [
        problem
        for problem in listing["problems"]
        if problem["distribution"] in {f"latentkit-{name}" for name in names.values()}
    ] == []


def test_wheels_hold_the_mark_of_a_typed_package(environment: Environment) -> None:
    code = "import latentkit_x, pathlib; print(pathlib.Path(latentkit_x.__file__).parent)"
    line = [str(environment.python), "-P", "-c", code]
    installed = Path(
        subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    )
    assert installed.is_relative_to(environment.python.parents[1])
    assert {path.name for path in installed.iterdir()} >= {
        "__init__.py",
        "plugin.py",
        "source.py",
        "py.typed",
    }


def test_every_package_passes_its_own_tests(environment: Environment) -> None:
    def run_tests(folder: Path) -> subprocess.CompletedProcess[str]:
        return environment.run("pytest", "-q", "-p", "no:cacheprovider", cwd=folder)

    with ThreadPoolExecutor(2) as pool:
        results = dict(
            zip(environment.folders, pool.map(run_tests, environment.folders.values()), strict=True)
        )
    assert {
        kind: done.stdout[-2000:] for kind, done in results.items() if done.returncode != 0
    } == {}
    counts = {
        kind: int(done.stdout.rsplit("\n", 2)[-2].split()[0]) for kind, done in results.items()
    }
    assert min(counts.values()) > 5, counts


def test_the_encoder_trains_and_what_it_wrote_encodes(
    environment: Environment, tmp_path: Path, make_photos: Callable[..., Path]
) -> None:
    name = NAMES["encoder"].removeprefix("latentkit-")
    common = {
        "source": {"use": "folder", "with": {"path": str(make_photos(4))}},
        "modality": {"use": "image", "with": {"size": 32}},
        "batch_size": 2,
    }
    train = {"model": {"use": name}, "losses": [{"use": "l1"}, {"use": "kl", "weight": 1e-6}]}
    evaluate = {"every": 2, "source": common["source"], "metrics": [{"use": "psnr"}]}
    train |= {"task": "train", "steps": 2, "evaluate": evaluate, "output": {"path": "run"}}
    encoder = {"use": name, "with": {"model": "run/model"}}
    encode = {"task": "encode", "encoder": encoder, "preview": 0, "output": {"path": "out"}}
    for recipe, more in (("train.yaml", train), ("encode.yaml", encode)):
        (tmp_path / recipe).write_text(json.dumps(common | more))
        done = environment.run("latentkit", "run", recipe, "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "run" / "model" / "statistics.json").read_text())
    stored = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert stored["normalization"]["shift"] == pytest.approx(written["mean"])


def test_every_package_is_lint_and_type_clean(environment: Environment, tmp_path: Path) -> None:
    packages = environment.folders["source"].parent
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        capture_output=True,
        text=True,
        cwd=packages,
    )
    assert linted.returncode == 0, linted.stdout
    config = environment.folders["source"] / "pyproject.toml"
    line = [sys.executable, "-m", "mypy", f"--config-file={config}", f"--cache-dir={tmp_path}", "."]
    typed = subprocess.run(line, capture_output=True, text=True, cwd=packages)
    assert typed.returncode == 0, typed.stdout
