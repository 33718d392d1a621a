"""Lengths of rows that an encoder takes, and where in a file they come from: pure arithmetic."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

from latentkit.contracts import MelSpec, SizeRule

CONTEXT_SAMPLES = 240
"""Of the lower rate, read beyond both ends of a part that is resampled, so that it is the same
part of the whole resampled: the best filter of soxr reaches 160 of them, by measurement.
"""


@dataclass(frozen=True)
class LengthRule:
    """Which numbers of samples the encoder takes, where a row of `size` steps is `(size - extra) *
    hop` samples long.

    Args:
        rule: of the sizes.
        hop: samples to a step.
        extra: steps more than hops, 1 for frames that are centered.
        fewest: samples a row must have.
    """

    rule: SizeRule
    hop: int = 1
    extra: int = 0
    fewest: int = 1

    @classmethod
    def of_mel(cls, rule: SizeRule, mel: MelSpec) -> LengthRule:
        """The rule of frames; mirroring the ends takes more than half a window."""
        return cls(rule, mel.hop, 1, mel.n_fft // 2 + 1)

    def allows(self, num_samples: int) -> bool:
        """Whether rows can be that long."""
        whole, size = num_samples % self.hop == 0, num_samples // self.hop + self.extra
        return num_samples >= self.fewest and whole and self.rule.allows(size)

    def at_most(self, num_samples: int) -> int | None:
        """The greatest length not above `num_samples`; None when there is none."""
        highest = num_samples // self.hop + self.extra
        if self.rule.maximum is not None:
            highest = min(highest, self.rule.maximum)
        lengths = (
            (size - self.extra) * self.hop
            for size in range(highest, max(highest - self.rule.multiple, 0), -1)
        )
        return next((length for length in lengths if self.allows(length)), None)

    def at_least(self, num_samples: int) -> int | None:
        """The smallest length not below `num_samples`; None when there is none."""
        lowest = max(-(-max(num_samples, self.fewest) // self.hop) + self.extra, self.rule.minimum)
        lengths = (
            (size - self.extra) * self.hop for size in range(lowest, lowest + self.rule.multiple)
        )
        return next((length for length in lengths if self.allows(length)), None)


@dataclass(frozen=True)
class Cut:
    """The frames of a file that a row is made of, and which of them come out of resampling.

    Args:
        start, stop: frames to read, context included.
        skip: resampled frames that are context in front.
        count: resampled frames to keep.
    """

    start: int
    stop: int
    skip: int
    count: int


def resampled_count(num_frames: int, from_hz: int, to_hz: int) -> int:
    """Frames that so many become at another rate: rounded to the nearest, halves by the floats
    that soxr has there.
    """
    return int(num_frames / (from_hz / to_hz) + 0.5)


def find_cut(first: int, count: int, num_frames: int, from_hz: int, to_hz: int) -> Cut:
    """What to read for `count` frames from number `first` on, of a file of `num_frames` that is
    resampled as a whole.

    What is read begins where a frame of one rate is one of the other, so that both sides count
    from there.
    """
    if from_hz == to_hz:
        return Cut(first, first + count, 0, count)
    step = from_hz // math.gcd(from_hz, to_hz)
    context = math.ceil(CONTEXT_SAMPLES * max(1, from_hz / to_hz))
    start = max(first * from_hz // to_hz - context, 0) // step * step
    stop = min(-(-(first + count) * from_hz // to_hz) + context, num_frames)
    return Cut(start, stop, first - start * to_hz // from_hz, count)


def draw_fraction(seed: int, key: str, view: str) -> float:
    """A number, evenly spread over [0, 1), that depends on the three alone."""
    digest = hashlib.sha256(json.dumps([seed, key, view]).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
