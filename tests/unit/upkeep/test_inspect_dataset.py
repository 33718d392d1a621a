"""What `latentkit inspect` prints of how latents are read."""

from __future__ import annotations

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
