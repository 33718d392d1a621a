"""Pages for authors of plugins: code is that of the examples, word for word, and the first works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
from documentation import ROOT, Block, blocks_of, name_of

from latentkit import contracts, hooks, testing
from latentkit.contracts import BuildContext, Config, Encoder
from latentkit.plugins import HOOKS, KINDS
from latentkit.plugins.new_plugin import new_plugin

FOLDER = ROOT / "docs" / "plugins"
GUIDE, CONTRACT = FOLDER / "index.md", ROOT / "docs" / "contract.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = [block for page in sorted(FOLDER.glob("*.md")) for block in blocks_of(page)]
QUOTED = [block for block in BLOCKS if block.marker.startswith("examples/")]
FIRST = "first plugin: "
"""Marker of the files that a reader of the tutorial writes, with the file's name behind it."""

LONGEST_ENCODER = 30
"""Lines of the example that the guide calls short, without docstring, imports and empty lines."""


@pytest.mark.parametrize("block", QUOTED, ids=name_of)
def test_code_of_the_guide_is_that_of_the_examples(block: Block) -> None:
    text = (ROOT / block.marker).read_text(encoding="utf-8")
    assert f"\n{block.code}" in "\n" + text


def test_no_code_of_the_guide_is_from_nowhere() -> None:
    pages = ("encoder.md", "examples.md", "series.md")
    code = [block for block in BLOCKS if block.language in ("python", "toml")]
    assert [block.name for block in code if block.page.name in pages and block not in QUOTED] == []


def test_every_example_is_quoted_and_every_example_has_tests() -> None:
    folders = {path.parent.name for path in ROOT.glob("examples/*/pyproject.toml")}
    assert folders == {Path(block.marker).parts[1] for block in QUOTED}
    tested = {name for name in folders if list((ROOT / "examples" / name).glob("tests/test_*.py"))}
    assert folders == tested


def test_an_encoder_of_ones_own_module_takes_thirty_lines() -> None:
    file = "latentkit_own_encoder/encoder.py"
    (code,) = [block.code for block in QUOTED if block.marker.endswith(file)]
    hidden = ("import ", "from ", '"""')
    lines = [line for line in code.splitlines() if line and not line.startswith(hidden)]
    assert len(lines) <= LONGEST_ENCODER


def test_every_hook_and_contract_is_in_the_table() -> None:
    table = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    assert [hook for hook in HOOKS if f"`{hook}`" not in table] == []
    kits = {name for name in testing.__all__ if name.endswith("Contract")} - {"PluginContract"}
    assert [name for name in kits if f"`{name}`" not in table] == []


def test_everything_in_contracts_stands_on_the_page_on_the_contract() -> None:
    text = CONTRACT.read_text(encoding="utf-8")
    specs = {"PluginSpec", "LossRole", "Worker"}
    specs |= {f"{kind.capitalize()}Spec" for kind in (*KINDS, "metric")}
    named = [name for name in contracts.__all__ if name not in specs]
    assert [name for name in named if not re.search(rf"`{name}\b", text)] == []
    assert "CONTRACT" in text
    assert hooks.CONTRACT >= 2


def test_examples_say_which_contract_they_need() -> None:
    for path in ROOT.glob("examples/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        package = path.parent / project["name"].replace("-", "_")
        text = (package / "__init__.py").read_text(encoding="utf-8")
        assert "\nrequires_contract = " in text
        assert (package / "py.typed").exists()


def test_plugin_on_one_screen_works() -> None:
    (code,) = [block.code for block in blocks_of(GUIDE) if "hookimpl" in block.code]
    module = types.ModuleType("my_encoder")
    exec(compile(code, "my_encoder.py", "exec"), module.__dict__)
    (spec,) = module.latentkit_encoders()
    encoder = spec.build(spec.config(), BuildContext())
    assert isinstance(encoder, Encoder)
    assert issubclass(spec.config, Config)
    assert encoder.encode(torch.zeros(2, 3, 32, 16))["latent"].shape == (2, 16, 4, 2)


# ---------------------------------------------------------------- the first plugin


STEP_FOUR = "tests/test_step_four.py"
"""The test that the scaffold makes, before its reader adds to it."""


@pytest.fixture
def first_plugin(tmp_path: Path) -> Path:
    """The package of the tutorial as its reader has it at the end, found as if it were installed."""
    folder = new_plugin("mosaic", "encoder", tmp_path)
    (folder / "tests" / "test_encoder.py").rename(folder / STEP_FOUR)
    for block in blocks_of(FOLDER / "first.md"):
        if block.marker.startswith(FIRST):
            (folder / block.marker.removeprefix(FIRST)).write_text(block.code, encoding="utf-8")
    installed = folder / "latentkit_mosaic-0.1.0.dist-info"
    installed.mkdir()
    metadata = "Metadata-Version: 2.1\nName: latentkit-mosaic\nVersion: 0.1.0\n"
    (installed / "METADATA").write_text(metadata)
    (installed / "entry_points.txt").write_text("[latentkit]\nmosaic = latentkit_mosaic.plugin\n")
    return folder


def test_the_first_plugin_fails_and_passes_where_the_tutorial_says(first_plugin: Path) -> None:
    path = os.pathsep.join([str(first_plugin), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf"],
        cwd=first_plugin,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    (failed,) = re.findall(r"^FAILED (\S+)::", ran.stdout, flags=re.M)
    assert failed.startswith(STEP_FOUR)
    (said,) = [block.code for block in blocks_of(FOLDER / "first.md") if block.language == "text"]
    assert said.strip() in ran.stdout


def test_the_first_plugin_is_linted(first_plugin: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    assert subprocess.run(command, cwd=first_plugin).returncode == 0
