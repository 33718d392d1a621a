"""The shape of the package: who imports whom, what loads torch, and how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentkit

ROOT = Path(latentkit.__file__).parent

# Package (or module at the root) to those it may import, at load, inside functions and for types
# alike. Every package may import itself.
READING = "contracts runtime store reading"
PARTS = "sources modalities encoders losses metrics executors exporters"
FLOOR = ("errors", "_version")
"""What everybody may import."""

MAY_IMPORT = {
    name: {*allowed.split(), *(() if name in FLOOR else FLOOR)}
    for name, allowed in {
        "errors": "",
        "_version": "",
        "contracts": "",
        "hooks": "contracts",
        "runtime": "contracts",
        "store": "contracts runtime",
        "reading": "contracts runtime store",
        "plugins": "contracts hooks runtime",
        "recipe": "contracts runtime plugins",
        "sources": "contracts runtime store plugins",
        "modalities": "contracts runtime",
        "encoders": "contracts runtime",
        "losses": "contracts runtime plugins",
        "metrics": f"{READING} plugins encoders losses",
        "executors": "contracts runtime",
        "exporters": READING,
        "preparing": "contracts runtime store",
        "encoding": f"{READING} preparing",
        "exporting": READING,
        "training": f"{READING} preparing losses",
        "evaluation": f"{READING} preparing metrics",
        "tasks": f"{READING} plugins recipe sources preparing encoding exporting training evaluation",
        "uses": f"{READING} recipe losses evaluation tasks",
        "upkeep": f"{READING} recipe modalities encoding tasks",
        "publishing": f"{READING} upkeep",
        "kit": "contracts runtime plugins recipe sources modalities encoders exporting metrics",
        "testing": f"{READING} recipe executors encoding exporting tasks",
        "builtin": f"contracts hooks runtime plugins {PARTS} cli",
        "cli": f"{READING} hooks plugins recipe encoding training evaluation tasks upkeep publishing",
        "api": f"{READING} recipe encoding tasks uses",
        "__init__": f"{READING} encoding api",
        "__main__": "cli",
    }.items()
}

LIGHT = [
    "errors",
    "hooks",
    "contracts",
    "plugins",
    "recipe",
    "builtin",
    "kit",
    "api",
    "cli",
    "cli.closing_words",
    "tasks.run_recipe",
    "tasks.check_recipe",
    "tasks.encode_task",
    "tasks.train_task",
    "tasks.evaluate_task",
    "tasks.build_parts",
    "uses.recipes",
    "uses.augment_study_task",
    "uses.augment_task",
    "uses.interpolate_task",
    "uses.sample_task",
    "uses.score_task",
    "tasks.open_encoder",
    "tasks.recipe_from_arguments",
    "plugins.new_plugin",
    "recipe.schema",
    "sources.options",
    "modalities.options",
    "encoders.options",
    "losses.options",
    "metrics.options",
    "executors.options",
    "exporters.options",
]
HEAVY = [
    "torch",
    "diffusers",
    "accelerate",
    "datasets",
    "numpy",
    "pyarrow",
    "transformers",
    "safetensors",
    "PIL",
]

LONGEST_MODULE = 500
LONGEST_FUNCTION = 60
VAGUE_NAMES = {
    "utils",
    "util",
    "common",
    "base",
    "helper",
    "helpers",
    "manager",
    "managers",
    "misc",
}


def list_modules() -> dict[str, str]:
    """Dotted name within latentkit to text, of every module."""
    files = sorted(ROOT.rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return {
        name.removesuffix(".__init__"): file.read_text(encoding="utf-8")
        for name, file in zip(names, files, strict=True)
    }


MODULES = list_modules()


def find_imports(text: str) -> Iterator[str]:
    """Modules of latentkit, by dotted names within it, that a file imports anywhere."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            if name.startswith("."):
                yield name
            elif name.partition(".")[0] == "latentkit":
                below = name.partition(".")[2]
                while below and below not in MODULES:
                    below = below.rpartition(".")[0]
                yield below or "__init__"


def find_wrong_imports(module: str, text: str) -> list[str]:
    """What a module (its dotted name within latentkit) imports and must not."""
    own = module.partition(".")[0]
    wrong = []
    for found in find_imports(text):
        if found.startswith("."):
            wrong.append(f"{module} imports {found}: say it from latentkit on")
        elif (target := found.partition(".")[0]) not in MAY_IMPORT[own] | {own}:
            wrong.append(f"{module} imports {found}, and {own} may not import {target}")
    return wrong


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that is imported from `start` on, over any number of steps."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def test_the_table_names_every_package_and_has_no_circle() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(MAY_IMPORT)
    assert [name for name in MAY_IMPORT if name in reachable(MAY_IMPORT, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_package_may(module: str) -> None:
    assert find_wrong_imports(module, MODULES[module]) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: set(find_imports(text)) - {name} for name, text in MODULES.items()}
    assert [name for name in graph if name in reachable(graph, name)] == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        (
            "recipe.schema",
            "def f():\n    from latentkit import tasks",
            "recipe.schema imports tasks, and recipe may not import tasks",
        ),
        (
            "store.plan",
            "if TYPE_CHECKING:\n    from latentkit.reading.dataset import LatentDataset",
            "store.plan imports reading.dataset, and store may not import reading",
        ),
        (
            "sources.folder",
            "import latentkit.modalities.image",
            "sources.folder imports modalities.image, and sources may not import modalities",
        ),
        (
            "store.plan",
            "from . import writer",
            "store.plan imports ..writer: say it from latentkit on",
        ),
    ],
)
def test_a_wrong_import_is_seen(module: str, text: str, expected: str) -> None:
    assert find_wrong_imports(module, text) == [expected]


def test_light_modules_load_nothing_heavy() -> None:
    imports = "\n".join(f"import latentkit.{name}" for name in LIGHT)
    program = f"{imports}\nimport sys; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_at_most_six_modules_lie_at_the_root() -> None:
    at_root = {file.stem for file in ROOT.glob("*.py")}
    assert at_root == {"__init__", "__main__", "_version", "api", "errors", "hooks"}


def test_no_module_has_the_name_of_a_public_function_or_of_the_standard_library() -> None:
    names = {name.rpartition(".")[2] for name in MODULES}
    assert sorted(names & set(latentkit.__all__)) == []
    assert sorted({name for name in MODULES if "." not in name} & sys.stdlib_module_names) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_module_and_no_function_is_long(module: str) -> None:
    text = MODULES[module]
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    long = {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert long == {}
    assert len(text.splitlines()) <= LONGEST_MODULE


def test_no_module_has_a_name_that_says_nothing() -> None:
    words = {name: set(name.replace(".", "_").split("_")) for name in MODULES}
    assert [name for name in MODULES if VAGUE_NAMES & words[name]] == []
