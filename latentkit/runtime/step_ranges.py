"""Ranges of training steps."""

from __future__ import annotations

from collections.abc import Sequence


def describe_gap(spans: Sequence[tuple[int, int | None]], num_steps: int) -> str:
    """Return a message about the first steps of a run that are in none of the spans; "" if all are.

    Args:
        spans: for each reconstruction loss with a fixed weight, its first step and the step after
            its last; None: to the end.
    """
    step = 0
    for start, until in sorted(spans, key=lambda span: span[0]):
        if start > step:
            break
        step = max(step, num_steps if until is None else until)
    if step >= num_steps:
        return ""
    end = min([num_steps, *(start for start, _ in spans if start > step)])
    wanted = (
        "training needs a reconstruction loss with a weight, such as l1 or mse, that isn't adaptive"
    )
    return f"losses: no reconstruction loss is active in steps {step + 1} to {end}; {wanted}"
