"""A name that begins with an underscore belongs to the file, or the class, that has it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("latentkit", "plugins", "examples", "recipes", "tests")
LOOKUPS = {"getattr", "setattr", "hasattr", "delattr"}
"""Functions, and methods of `pytest.MonkeyPatch`, that take a name as a text."""

OTHERS = {
    "latentkit._version": "the version, without loading the package",
    "os._exit": "documented by Python",
    "sys._getframe": "documented by Python",
    "shutil._use_fd_functions": "as on a system without them",
    "pickle._Unpickler": "the unpickler in Python, whose opcodes can be replaced",
    "distribution._path": "where a distribution lies that doesn't say its name",
    "dataset._fingerprint": "what `datasets` caches by; it has no other name for the same rows",
    "argparse._SubParsersAction": "argparse tells a parser's arguments in no other way",
    "argparse._HelpAction": "likewise",
    "make_parser()._actions": "likewise",
    "command._actions": "likewise",
    "top._actions": "likewise",
    "group._choices_actions": "likewise",
    "torch._foreach_lerp_": "documented by torch",
    "torch._foreach_add": "documented by torch",
    "torch._register_device_module": "documented by torch for backends",
    "torch._dynamo": "limits of torch.compile have no other name in torch 2.6",
    "utils._triton": "whether torch can use Triton is told nowhere else",
    "torch._utils": "what the pickles of torch.save call",
    "_utils._rebuild_tensor_v2": "likewise",
    "_utils._rebuild_tensor_v3": "likewise",
    "untyped_storage()._cdata": "whether two tensors have one storage, not just one address",
    "model._keep_in_fp32_modules": "what from_pretrained of diffusers does with a file of weights",
    "model._fix_state_dict_keys_on_load": "likewise",
    "model._keys_to_ignore_on_load_unexpected": "likewise",
    "FluxImg2ImgPipeline._encode_vae_image": "what a pipeline of diffusers does with latents",
    "Flux2Pipeline._encode_vae_image": "likewise",
    "Flux2Pipeline._patchify_latents": "likewise",
    "LTX2Pipeline._denormalize_audio_latents": "likewise",
    "encoders._normalize_audio_latents": "likewise",
    "getattr()._encode_vae_image": "likewise",
    "getattr()._normalize_latents": "likewise",
    "AsyncFileSystem._put_file": "fsspec: whether a driver can write only where nothing is",
    "type()._put_file": "likewise",
    "fs._strip_protocol": "fsspec: how a driver names a URL's file",
    "ray._private": "Ray: no option turns off dumps of lost nodes",
    "worker._worker_logs_enabled": "likewise",
    "Meter()._filters": "pyloudnorm: the filters that BS.1770-4 gives",
}
"""Private names of other packages that are used, as `owner.name`, and why nothing public does."""


def is_private(name: str) -> bool:
    """Return whether a name, which isn't one of Python's own, begins with an underscore."""
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


def list_members(tree: ast.Module) -> set[str]:
    """Names that the file's own classes have: methods, attributes, and what is set on objects."""
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and is_self(node.value)
    }
    for owner in ast.walk(tree):
        for node in owner.body if isinstance(owner, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def is_self(node: ast.expr) -> bool:
    """Return whether this is the object of the method itself, which has what it inherits too."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def owner_of(node: ast.expr) -> str:
    """Return the last name of what an attribute is of, such as "utils" for torch.utils."""
    if isinstance(node, ast.Call):
        return f"{owner_of(node.func)}()"
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def looked_up(node: ast.Call) -> list[str]:
    """Return the private names that a call looks up by their texts."""
    function = owner_of(node.func)
    texts = [part.value for part in node.args if isinstance(part, ast.Constant)]
    names = [text for text in texts if isinstance(text, str)] if function in LOOKUPS else []
    dotted = [(name.rpartition(".")[0] or owner_of(node.args[0]), name) for name in names]
    return [f"{owner}.{name.rpartition('.')[2]}" for owner, name in dotted]


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield what is imported, as `owner.name`, and each package that it lies in."""
    above = [] if isinstance(node, ast.Import) else (node.module or "").split(".")
    for alias in node.names:
        parts = [*above, *alias.name.split(".")]
        yield from (f"{owner}.{name}" for owner, name in zip(["", *parts], parts, strict=False))


def find_reaches(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and `owner.name` of every private name of another file that a program uses."""
    tree = ast.parse(text)
    members = list_members(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = list(imported(node))
        elif isinstance(node, ast.Call):
            names = looked_up(node)
        elif isinstance(node, ast.Attribute) and not is_self(node.value):
            names = [f"{owner_of(node.value)}.{node.attr}"] if node.attr not in members else []
        for name in dict.fromkeys(names):
            if is_private(name.rpartition(".")[2]):
                yield node.lineno, name


def list_files() -> Iterator[Path]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if not {"build", ".venv"} & set(file.relative_to(ROOT).parts):
                yield file


REACHES = [
    (f"{file.relative_to(ROOT).as_posix()}:{line}", name)
    for file in list_files()
    for line, name in find_reaches(file.read_text(encoding="utf-8"))
]


def test_no_file_uses_a_private_name_of_another() -> None:
    assert [reach for reach in REACHES if reach[1] not in OTHERS] == []


def test_every_exception_is_used() -> None:
    assert set(OTHERS) - {name for _, name in REACHES} == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from latentkit.store.writer import _pack", ["writer._pack"]),
        ("import latentkit.store._writer", ["store._writer"]),
        ("from latentkit._private.parts import Part", ["latentkit._private"]),
        ("writer._pack()", ["writer._pack"]),
        ("store.writer()._file.close()", ["writer()._file"]),
        ("patch.setattr(writer, '_pack', None)", ["writer._pack"]),
        ("patch.setattr('latentkit.store.writer._pack', None)", ["latentkit.store.writer._pack"]),
        ("getattr(writer, '_pack')", ["writer._pack"]),
        ("class A:\n    def f(self, other):\n        self._x = other._x, other.__len__", []),
        ("class A(B):\n    def f(self):\n        return self._inherited", []),
        ("def _f():\n    pass\nwriter._f()", ["writer._f"]),
        ("for _ in range(3): _, x = f(_)", []),
    ],
)
def test_a_reach_is_seen(text: str, expected: list[str]) -> None:
    assert [name for _, name in find_reaches(text)] == expected
