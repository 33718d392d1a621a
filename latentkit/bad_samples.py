"""How many samples may be of no use before a run ends."""

from __future__ import annotations

ALWAYS_ALLOWED = 10


def are_too_many(num_bad: int, num_samples: int, max_bad: float) -> bool:
    """Whether so many bad ones of all samples are more than a recipe's `max_bad`, a share from 0 to 1; ten never are."""
    return num_bad > ALWAYS_ALLOWED and num_bad > max_bad * num_samples
