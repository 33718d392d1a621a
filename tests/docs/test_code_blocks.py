"""Code of the documentation is right: it compiles, names what is there, and runs where it can."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documentation import PAGES, Block, blocks_of, find_blocks, name_of

import latentkit
from latentkit.contracts import BuildContext
from latentkit.plugins import discover

LANGUAGES = {"python", "yaml", "sh", "bash", "toml", "text"}
RUN = "run"
"""Marker of blocks that run; those of one page run in order, and share their names."""

RUNNING = [page for page in PAGES if any(block.marker == RUN for block in blocks_of(page))]
ELSEWHERE = ("latentkit_",)
"""Modules of plugins, which are tested with them."""


def test_every_block_is_in_a_language_that_is_checked() -> None:
    assert [block.name for block in find_blocks() if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", find_blocks("python"), ids=name_of)
def test_python_compiles_and_names_what_is_there(block: Block) -> None:
    tree = ast.parse(textwrap.dedent(block.code))
    assert list(find_missing(tree)) == []


@pytest.mark.parametrize("block", find_blocks("toml"), ids=name_of)
def test_toml_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.code)


def test_names_that_are_not_there_are_found() -> None:
    code = """
    import latentkit as lk
    import latentkit.nowhere
    from latentkit.contracts import Sample, Simple
    lk.open("a", posterior="mean").batches(2)
    lk.opens("a")
    lk.open("a", prior="mean")
    """
    missing = ["latentkit.nowhere", "latentkit.contracts.Simple", "latentkit.opens", "open(prior=)"]
    assert sorted(find_missing(ast.parse(textwrap.dedent(code)))) == sorted(missing)


def find_missing(tree: ast.Module) -> Iterator[str]:
    """What the code imports or takes from latentkit, and is not there."""
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                found = _import(name.name)
                if isinstance(found, ModuleType):
                    modules[name.asname or name.name.partition(".")[0]] = found
                elif found is None:
                    yield name.name
        elif isinstance(node, ast.ImportFrom):
            yield from _missing_names(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                yield f"{module.__name__}.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from _unknown_arguments(node, modules)


def _import(name: str) -> ModuleType | bool | None:
    """Return the module; True where it belongs to a plugin, None where there is none."""
    if name.startswith(ELSEWHERE):
        return True
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _missing_names(node: ast.ImportFrom) -> Iterator[str]:
    module = _import(node.module or "")
    if module is None:
        yield f"{node.module}"
    elif isinstance(module, ModuleType):
        for name in node.names:
            if not hasattr(module, name.name) and _import(f"{node.module}.{name.name}") is None:
                yield f"{node.module}.{name.name}"


def _unknown_arguments(node: ast.Call, modules: dict[str, ModuleType]) -> Iterator[str]:
    """Keyword arguments of latentkit's own functions that these don't have."""
    called = node.func
    if not (isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)):
        return
    if modules.get(called.value.id) is not latentkit or not hasattr(latentkit, called.attr):
        return
    known = inspect.signature(getattr(latentkit, called.attr)).parameters
    for keyword in node.keywords:
        if keyword.arg not in known:
            yield f"{called.attr}({keyword.arg}=)"


# ---------------------------------------------------------------- blocks that run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and captions, and a latent dataset of them, as readers have it."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "photos").mkdir()
    spec: Any = discover().find("source", "sample-photos").spec
    source = spec.build(spec.config(), BuildContext())
    for sample in [source[index] for index in range(4)]:
        (folder / "photos" / f"{sample.key}.png").write_bytes(sample.read())
        (folder / "photos" / f"{sample.key}.txt").write_text(f"a photo of {sample.key}")
    overrides = {"modality.with.views": ["plain", "hflip"], "preview": 0}
    latents = folder / "latents" / "photos"
    latentkit.encode(folder / "photos", latents, size=64, overrides=overrides)
    return folder


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_marked_code_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    module = ModuleType("page")
    for block in blocks_of(page):
        if block.marker == RUN:
            exec(compile(block.code, block.name, "exec"), module.__dict__)


def test_the_pages_that_teach_reading_run() -> None:
    names = {name_of(page) for page in RUNNING}
    assert {"README.md", "docs/index.md", "docs/start/read.md", "docs/plugins/index.md"} <= names
