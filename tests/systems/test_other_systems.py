"""Reading, encoding and training do without what macOS and Windows lack, as far as Linux can tell.

`lacking.LACKING` lists what was checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from .lacking import LACKING

FOLDER = Path(__file__).parent
HEAVY = (
    "torch",
    "diffusers",
    "accelerate",
    "datasets",
    "pyarrow.parquet",
    "psutil",
    "fsspec",
    "filelock",
    "safetensors.torch",
    "PIL.Image",
)


def run_on(system: str, file: str, folder: Path, modules: Sequence[str] = ()) -> str:
    """What a file of this folder prints, run in `folder` as on a system."""
    line = [sys.executable, str(FOLDER / "lacking.py"), system, str(FOLDER / file), *modules]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_code_that_needs_what_a_system_lacks_fails_there(system: str, tmp_path: Path) -> None:
    expected = [f"{lack.name}: {'fails' if system in lack.on else 'works'}" for lack in LACKING]
    assert run_on(system, "lacking_doubles.py", tmp_path).splitlines() == expected


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_no_name_is_used_that_only_linux_has(system: str, tmp_path: Path) -> None:
    double = tmp_path / "double.py"
    double.write_text(
        "import errno, os\nos.sched_getaffinity(0)\nerrno.EREMOTEIO\n", encoding="utf-8"
    )
    options = [
        "--config-file=",
        "--follow-imports=skip",
        "--ignore-missing-imports",
        f"--cache-dir={tmp_path}",
        f"--platform={system}",
    ]
    line = [
        sys.executable,
        "-m",
        "mypy",
        *options,
        str(double),
        "latentkit",
        *map(str, FOLDER.parents[1].glob("plugins/*/latentkit_*/")),
    ]
    printed = subprocess.run(line, cwd=FOLDER.parents[1], capture_output=True, text=True).stdout
    missing = [text for text in printed.splitlines() if "Module has no attribute" in text]
    assert [text.partition("attribute ")[2].split()[0] for text in missing] == [
        '"sched_getaffinity"',
        '"EREMOTEIO"',
    ], missing


@pytest.fixture(scope="module")
def on_linux(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Any:
    folder = tmp_path_factory.mktemp("linux")
    write_photos(folder / "photos", 6)
    return json.loads(run_on("linux", "whole_jobs.py", folder, HEAVY).splitlines()[-1])


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_encoding_reading_and_training_end_as_on_linux(
    system: str, on_linux: Any, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    write_photos(tmp_path / "photos", 6)
    assert json.loads(run_on(system, "whole_jobs.py", tmp_path, HEAVY).splitlines()[-1]) == on_linux
