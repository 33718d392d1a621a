"""The shape of the package: imports point downwards, the light half loads nothing heavy, nothing is long or called a helper."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import latentkit

ROOT = Path(latentkit.__file__).parent

# From the lowest up. One line is one layer, "a b" in one text is one group: a module imports its own group and lower layers. A
# group in the same layer is out of its sight. A name stands for a module or a package of latentkit.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("runtime",),
    ("layouts", "samples"),
    ("specs",),
    ("contracts",),
    ("hooks", "bad_samples", "normalize", "validation", "yaml_loader", "progress", "retry", "numerics", "buffers", "masks"),
    ("overrides", "builtin_metrics"),
    ("recipe_parts",),
    ("recipe",),
    ("plugins", "builtin builtin_losses builtin_exporters"),
    ("check",),
    ("build", "shorthand", "scaffold"),
    # torch below
    ("store",),
    ("sources", "modalities", "encoders", "losses", "executors", "exporters"),
    ("metrics",),
    (
        "encode one_pass planning quantisation pipeline preparing preparing_processes encoding measure batching",
        "inspect",
        "exporting",
        "preview",
        "train training_batches training_latents training_probe training_run training_start training_step training_log training_result "
        "training_settings training_state checkpoint ema",
    ),
    ("evaluate evaluation_batches evaluation_pictures evaluation_charts evaluation_report evaluation_output",),
    ("run_evaluating",),
    ("run_training",),
    ("run",),
    ("repair reencode revalue",),
    ("report",),
    ("testing",),
    ("cli",),
    ("__init__ __main__",),
)
LAYER = {name: number for number, groups in enumerate(LAYERS) for group in groups for name in group.split()}
GROUP = {name: group for groups in LAYERS for group in groups for name in group.split()}

# Inside functions only: `build` of a built-in opens its implementation, a line puts captions in the place of media, a short command looks
# at what lies at a URL, and a normalisation does its arithmetic in torch.
UPWARD_INSIDE_FUNCTIONS = {("builtin", part) for part in ("sources", "modalities", "encoders", "executors")} | {
    ("build", "sources"),
    ("shorthand", "sources"),
    ("builtin_exporters", "exporters"),
    ("builtin_losses", "losses"),
    ("builtin_losses", "plugins"),
    ("builtin_metrics", "metrics"),
    ("layouts", "normalize"),
}

LOADING_TORCH = {"buffers", "masks", "normalize", "numerics", "progress", "runtime"}
LIGHT = {name for name, layer in LAYER.items() if layer <= LAYER["build"]} - LOADING_TORCH | {
    "run",
    "run_evaluating",
    "run_training",
    "report",
    "cli",
    "__init__",
    "__main__",
}
HEAVY = {"torch", "diffusers", "accelerate", "datasets", "numpy", "pyarrow", "transformers", "safetensors", "PIL", "skimage"}

LONGEST_MODULE = 400
LONGEST_FUNCTION = 45
VAGUE_NAMES = {"utils", "util", "common", "base", "helper", "helpers", "manager", "managers", "misc"}


@dataclass(frozen=True)
class Import:
    """A module that a file loads, with its dots, and whether that happens when the file itself is loaded."""

    module: str
    at_load: bool


def find_imports(tree: ast.AST, at_load: bool = True) -> Iterator[Import]:
    """All imports that run; those for type checkers alone don't."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (found for part in node.orelse for found in find_imports(ast.Module([part], []), at_load))
        elif isinstance(node, ast.Import):
            yield from (Import(name.name, at_load) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (Import(f"{start}.{name.name}", at_load) for name in node.names)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from find_imports(node, at_load and not is_function)


def find_wrong_imports(module: str, text: str) -> list[str]:
    """What a module (its dotted name within latentkit) imports and must not."""
    own = module.split(".")[0]
    wrong = []
    for found in find_imports(ast.parse(text)):
        package, *below = found.module.split(".")
        if not package:
            wrong.append(f"{module} imports {found.module}: say it from latentkit on")
        elif package != "latentkit":
            if own in LIGHT and found.at_load and package in HEAVY:
                wrong.append(f"{module} imports {package} when loaded: do it inside a function")
        elif below and (target := below[0]) in LAYER and GROUP[target] != GROUP[own]:
            is_down = LAYER[target] < LAYER[own] or (not found.at_load and (own, target) in UPWARD_INSIDE_FUNCTIONS)
            if not is_down:
                wrong.append(f"{module} imports {target}, which is not below it")
            if own in LIGHT and target not in LIGHT and found.at_load:
                wrong.append(f"{module} imports {target}, which may be heavy, when loaded")
    return wrong


def list_modules() -> dict[str, str]:
    """Dotted name within latentkit to text, of every module."""
    files = sorted(ROOT.rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text(encoding="utf-8") for file in files}


MODULES = list_modules()


def test_every_module_has_its_place_in_the_layers() -> None:
    assert sorted({name.split(".")[0] for name in MODULES} - set(LAYER)) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in LAYER])
def test_imports_point_downwards_and_light_modules_load_nothing_heavy(module: str) -> None:
    assert find_wrong_imports(module, MODULES[module]) == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("recipe", "from latentkit.plugins import discover", ["recipe imports plugins, which is not below it"]),
        ("recipe", "def f():\n    from latentkit import plugins", ["recipe imports plugins, which is not below it"]),
        ("sources.folder", "import latentkit.modalities.image", ["sources.folder imports modalities, which is not below it"]),
        ("cli", "import torch.nn as nn", ["cli imports torch when loaded: do it inside a function"]),
        ("cli", "class A:\n    if True:\n        from numpy import ndarray", ["cli imports numpy when loaded: do it inside a function"]),
        ("cli", "from latentkit.encode import encode_source", ["cli imports encode, which may be heavy, when loaded"]),
        ("store.plan", "from . import writer", ["store.plan imports ..writer: say it from latentkit on"]),
        ("builtin", "from latentkit.sources.folder import FolderSource", ["builtin imports sources, which is not below it"]),
    ],
)
def test_a_wrong_import_is_seen(module: str, text: str, expected: list[str]) -> None:
    assert [line for line in find_wrong_imports(module, text) if "may be heavy" not in line or line in expected] == expected


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("cli", "def f():\n    import torch\n    from latentkit.encode import encode_source"),
        ("builtin", "def build():\n    from latentkit.sources.folder import FolderSource"),
        ("contracts", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("store.plan", "import torch\nfrom latentkit.store import writer\nfrom latentkit.errors import StoreError"),
        ("train", "from latentkit.training_log import TrainingLog"),
    ],
)
def test_a_right_import_is_not_complained_of(module: str, text: str) -> None:
    assert find_wrong_imports(module, text) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_module_and_no_function_is_long(module: str) -> None:
    text = MODULES[module]
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
    assert len(text.splitlines()) <= LONGEST_MODULE


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in MODULES if VAGUE_NAMES & {word for part in name.split(".") for word in part.split("_")}] == []
