"""Turns anomaly scores into decisions, and measures them against labels. In every score a higher
value is more unusual; nan means that an item has no such score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Threshold:
    """A score above `value` is called unusual.

    Args:
        rate: share of the items it was set by that lie above it: of clean ones the false-positive
            rate, otherwise the assumed contamination.
        interval: 95 % interval of that rate for further items like these (E. B. Wilson, 1927).
        num_items: items it was set by.
    """

    value: float
    rate: float
    interval: tuple[float, float]
    num_items: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "value": self.value,
            "rate": self.rate,
            "rate_95": list(self.interval),
            "num_items": self.num_items,
        }


def set_threshold(scores: Scores, rate: float) -> Threshold:
    """Return the lowest threshold that at most a share `rate` of the scores lies above."""
    ordered = np.sort(scores[~np.isnan(scores)])
    count = len(ordered)
    value = float(ordered[count - 1 - math.floor(rate * count)])
    above = int((ordered > value).sum())
    return Threshold(value, above / count, wilson_interval(above, count), count)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share."""
    share, spread = successes / count, NORMAL_95**2 / count
    center = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (center - half) / (1 + spread)), min(1.0, (center + half) / (1 + spread))


def combine(scores: Mapping[str, Scores], reference: Mapping[str, Scores]) -> Scores:
    """Return one score of several, by R. A. Fisher's method: the mean of -log p, where p is the
    share of the reference that is at least as unusual. A score beyond the whole reference counts by
    how far it is beyond, so that the most unusual items keep their order.
    """
    parts = [_surprise(scores[name], reference[name]) for name in scores]
    stacked = np.stack(parts)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _surprise(scores: Scores, reference: Scores) -> Scores:
    """Return -log p of each score."""
    ordered = np.sort(reference[~np.isnan(reference)])
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    surprise = -np.log((1 + at_least) / (len(ordered) + 1))
    spread = float(ordered[-1] - np.median(ordered)) or 1.0
    beyond = np.log1p(np.maximum(scores - ordered[-1], 0) / spread)
    return np.where(np.isnan(scores), np.nan, surprise + beyond)


def roc_auc(scores: Scores, is_unusual: Bools) -> float:
    """Return the area under the ROC curve: the probability that an unusual item scores higher than
    another (ties count half).
    """
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places]
    positives = int(is_unusual.sum())
    negatives = len(scores) - positives
    above = ranks[is_unusual].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(scores: Scores, is_unusual: Bools) -> float:
    """Return the mean precision over all recalls, as scikit-learn defines it."""
    values, places = np.unique(-scores, return_inverse=True)
    found = np.bincount(places, is_unusual, len(values)).cumsum()
    called = np.bincount(places, minlength=len(values)).cumsum()
    gained = np.diff(found, prepend=0) / found[-1]
    return float((gained * found / called).sum())
