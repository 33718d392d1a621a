"""How many samples may be of no use before a run ends, and what to do then."""

from __future__ import annotations

from collections.abc import Collection

ALWAYS_ALLOWED = 10

NOT_FINITE = (
    "the latents are not finite; set on_overflow: retry-fp32, encode with dtype bfloat16 or "
    "float32, or store with dtype float32"
)
"""Reason of a sample that the encoder, not the source, is to blame for."""


def are_too_many(num_bad: int, num_samples: int, max_bad: float) -> bool:
    """Return whether bad samples exceed `max_bad`, a share from 0 to 1; ten never do."""
    return num_bad > ALWAYS_ALLOWED and num_bad > max_bad * num_samples


def advise(reasons: Collection[str], folder: str) -> str:
    """What to do about samples that can't be used for these reasons, of the run in `folder`."""
    fixes = ["repair the source"] * bool(set(reasons) - {NOT_FINITE})
    fixes += ["set on_overflow or a dtype as said"] * (NOT_FINITE in reasons)
    again = f"raise max_bad and run {folder}/recipe.yaml again"
    return f"Either {' and '.join(fixes)} and write to another output, or {again}"
