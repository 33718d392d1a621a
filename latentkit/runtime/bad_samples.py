"""How many bad samples a run accepts, and advice on them."""

from __future__ import annotations

from collections.abc import Collection

MIN_BAD_ALLOWED = 10

NOT_FINITE = (
    "the latents are not finite; set on_overflow: retry-fp32, encode with dtype bfloat16 or "
    "float32, or store with dtype float32"
)
"""Reason of a sample whose latents, not its media, are the problem."""


def exceeds_max_bad(num_bad: int, num_samples: int, max_bad: float) -> bool:
    """Return whether the share of bad samples exceeds a recipe's `max_bad` (0 to 1). Ten bad
    samples are always allowed.
    """
    return num_bad > MIN_BAD_ALLOWED and num_bad > max_bad * num_samples


def advise_on_bad_samples(reasons: Collection[str], folder: str) -> str:
    """Return what to do about samples with these reasons, for the run in `folder`."""
    fixes = ["repair the source"] * bool(set(reasons) - {NOT_FINITE})
    fixes += ["set on_overflow or a dtype as described"] * (NOT_FINITE in reasons)
    again = f"raise max_bad and run {folder}/recipe.yaml again"
    return f"Either {' and '.join(fixes)} and choose another output.path, or {again}"
