"""`latentkit.kit`: what is promised is there and documented, and first-party plugins need nothing
else.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentkit import kit
from latentkit.contracts import Sample
from latentkit.errors import SampleError

ROOT = Path(__file__).parents[3]
PROMISED = {
    "latentkit.contracts": None,
    "latentkit.errors": None,
    "latentkit.hooks": None,
    "latentkit.kit": None,
    "latentkit.testing": None,
    "latentkit.sources.spans": None,
    "latentkit.encoders.hashing": {"hash_tensors"},
    "latentkit.encoders.weight_files": {"read_tensors"},
    "latentkit": {"LatentDataset"},  # and `import latentkit`, for `latentkit.open`
}
"""Modules that docs/contract.md promises, and which names of them where not all."""
PLUGINS = [
    *ROOT.glob("plugins/*/latentkit_*/**/*.py"),
    *ROOT.glob("examples/*/latentkit_*/**/*.py"),
]
TEMPLATES = list((ROOT / "latentkit" / "plugins" / "scaffolds").rglob("*.py.in"))
HEAVY = {"torch", "numpy", "PIL", "pyarrow", "huggingface_hub"}


def find_unpromised(text: str) -> Iterator[str]:
    """What a file imports of latentkit beyond the promise."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("latentkit."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == (
            "latentkit"
        ):
            names = {one.name for one in node.names}
            allowed = PROMISED.get(node.module or "", set())
            yield from sorted(
                f"{node.module}.{name}" for name in (names - allowed if allowed is not None else ())
            )


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: str(file.relative_to(ROOT)))
def test_first_party_plugins_import_what_is_promised(file: Path) -> None:
    assert list(find_unpromised(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: f"{file.parts[-3]}/{file.stem}")
def test_new_plugins_import_what_is_promised(file: Path) -> None:
    text = re.sub(r"\$\{?\w+\}?", "x", file.read_text(encoding="utf-8"))
    assert list(find_unpromised(text)) == []


def test_an_import_beyond_the_promise_is_seen() -> None:
    text = (
        "def f():\n    from latentkit.runtime.buffers import BufferPool\n"
        "from latentkit import open, LatentDataset\nimport latentkit.store\n"
        "from latentkit.encoders.hashing import hash_tensors, digest\n"
        "from latentkit_x import y\nimport latentkit_x\n"
    )
    assert sorted(find_unpromised(text)) == [
        "latentkit.encoders.hashing.digest",
        "latentkit.open",
        "latentkit.runtime.buffers.BufferPool",
        "latentkit.store",
    ]


def test_promised_modules_stand_on_the_page_on_the_contract() -> None:
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    assert [name for name in PROMISED if f"`{name}" not in page] == []


def test_every_name_of_the_kit_is_there_and_documented() -> None:
    page = (ROOT / "docs" / "plugins" / "index.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in kit.__all__ if not any(f"`{name}" in row for row in rows)] == []
    assert [name for name in kit.__all__ if not getattr(kit, name).__doc__] == []
    assert set(kit.__all__) <= set(dir(kit))
    with pytest.raises(AttributeError, match=r"'latentkit\.kit' has no attribute 'nothing'"):
        kit.nothing  # noqa: B018


def test_a_name_that_is_light_loads_nothing_heavy() -> None:
    code = (
        "from latentkit.kit import FolderConfig, FramingConfig, discover, file_state\n"
        f"import sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_is_the_same_wherever_it_is_imported_from() -> None:
    buffers = importlib.import_module("latentkit.runtime.buffers")
    assert kit.BufferPool is buffers.BufferPool


def test_without_pyav_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(SampleError, match=r"^a video in a container, .* the package PyAV: pip install"),
        kit.open_with_av(Sample("a", b"RIFF"), "a video", ["avi"]),
    ):
        pass
