"""The guide for authors of plugins: its code is that of the examples, word for word, its recipes
are valid, its files are there.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from latentkit import contracts, hooks, testing
from latentkit.plugins import HOOKS
from latentkit.recipe.schema import load_recipe

ROOT = Path(__file__).parents[2]
GUIDE, CONTRACT = ROOT / "docs" / "plugins.md", ROOT / "docs" / "contract.md"
TEXT = GUIDE.read_text(encoding="utf-8")
QUOTED = re.findall(r"^<!-- (\S+) -->\n```\w+\n(.*?)^```", TEXT, flags=re.M | re.S)
LONGEST_ENCODER = 30
"""Lines of the example that the guide calls short, its docstring, imports and empty lines left out.
"""


@pytest.mark.parametrize(("file", "code"), QUOTED, ids=[file for file, _ in QUOTED])
def test_code_of_the_guide_is_that_of_the_examples(file: str, code: str) -> None:
    assert f"\n{code}" in "\n" + (ROOT / file).read_text(encoding="utf-8")


def test_no_code_of_the_guide_is_from_nowhere() -> None:
    assert len(re.findall(r"^```(?:python|toml)$", TEXT, flags=re.M)) == len(QUOTED)


def test_every_example_is_quoted_and_every_example_has_tests() -> None:
    folders = {path.parent.name for path in ROOT.glob("examples/*/pyproject.toml")}
    assert folders == {Path(file).parts[1] for file, _ in QUOTED}
    assert [
        name for name in folders if not list((ROOT / "examples" / name).glob("tests/test_*.py"))
    ] == []


def test_an_encoder_of_ones_own_module_takes_thirty_lines() -> None:
    (code,) = [code for file, code in QUOTED if file.endswith("latentkit_own_encoder/encoder.py")]
    lines = [
        line
        for line in code.splitlines()
        if line and not line.startswith(("import ", "from ", '"""'))
    ]
    assert len(lines) <= LONGEST_ENCODER


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.M | re.S))
def test_recipes_of_the_guide_are_valid(block: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(block)
    load_recipe(file)


def test_every_hook_and_contract_is_in_the_table() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    table = "\n".join(rows)
    assert [hook for hook in HOOKS if f"`{hook}`" not in table] == []
    kits = {name for name in testing.__all__ if name.endswith("Contract")} - {"PluginContract"}
    assert [name for name in kits if f"`{name}`" not in table] == []


@pytest.mark.parametrize("page", [GUIDE, CONTRACT], ids=lambda page: page.name)
def test_files_and_links_of_the_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:latentkit|tests|examples)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_everything_in_contracts_stands_on_the_page_on_the_contract() -> None:
    text = CONTRACT.read_text(encoding="utf-8")
    specs = {
        "EncoderSpec",
        "ExecutorSpec",
        "ExporterSpec",
        "LossSpec",
        "ModalitySpec",
        "SourceSpec",
        "PluginSpec",
        "LossRole",
        "Worker",
    }
    assert [
        name
        for name in contracts.__all__
        if name not in specs and not re.search(rf"`{name}\b", text)
    ] == []
    assert "CONTRACT" in text
    assert hooks.CONTRACT >= 2


def test_examples_say_which_contract_they_need() -> None:
    for path in ROOT.glob("examples/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        package = path.parent / project["name"].replace("-", "_")
        assert "\nrequires_contract = " in (package / "__init__.py").read_text(encoding="utf-8")
        assert (package / "py.typed").exists()
