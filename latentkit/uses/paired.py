"""Confidence intervals of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""97.5 % quantiles of Student's t distribution with 1 to 20 degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"mean": self.mean, "low_95": self.low, "high_95": self.high}


def interval_of(values: Sequence[float]) -> Interval:
    """Return the mean of 2 to 21 values with Student's interval."""
    mean = statistics.fmean(values)
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Return the mean difference of pairs, value minus other, with its interval."""
    return interval_of([a - b for a, b in zip(values, others, strict=True)])
