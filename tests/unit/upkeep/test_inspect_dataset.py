"""What `latentkit inspect` prints of how latents are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentkit.upkeep.inspect_dataset import describe, inspect_dataset

GOLDEN = Path(__file__).parents[2] / "golden" / "v1"


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ({"shift": 0.5, "scale": 2.0}, "(z - 0.5) * 2"),
        (
            {"shift": 0.5, "scale": 2.0, "fold": {"H": 2, "W": 2}},
            "(fold(z) - 0.5) * 2; fold puts 2 along H and 2 along W into channels: 8 when read",
        ),
    ],
)
def test_how_latents_are_normalized_is_said(
    normalization: dict[str, object], expected: str
) -> None:
    found = inspect_dataset(str(GOLDEN))
    assert found["layout"]["channels"] == 2
    assert (
        f"  normalized {expected}" in describe(
            found | {"normalization": normalization}
        ).splitlines()
    )


@pytest.mark.parametrize(
    ("kind", "store", "expected"),
    [
        ("gaussian", "moments", "moments in float16"),
        ("gaussian", "sample", "sample in float16"),
        ("deterministic", "moments", "latents in float16"),
        ("quantised", "moments", "indices"),
    ],
)
def test_what_is_stored_is_said_by_the_kind_of_latents(
    kind: str, store: str, expected: str
) -> None:
    found = inspect_dataset(str(GOLDEN))
    changed = {"layout": found["layout"] | {"kind": kind}, "store": store, "dtype": "float16"}
    assert f"  stored as  {expected}" in describe(found | changed).splitlines()


def test_inspecting_loads_no_torch() -> None:
    code = (
        "import sys; from latentkit.cli.main import main\n"
        f"code = main(['inspect', {str(GOLDEN)!r}]) or main(['inspect', {str(GOLDEN)!r}, '--json'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
