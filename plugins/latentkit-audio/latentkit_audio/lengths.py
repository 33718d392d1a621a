"""Computes the lengths of rows that an encoder accepts, and which part of a file each row comes
from.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

from latentkit.contracts import MelSpec, SizeRule

CONTEXT_SAMPLES = 240
"""Samples of the lower rate that are read beyond both ends of a part before resampling, so that it
equals that part of the resampled whole. soxr's best filter reaches 160 of them (measured).
"""


@dataclass(frozen=True)
class LengthRule:
    """The numbers of samples that the encoder accepts. A row of `size` steps has `(size - extra) *
    hop` samples.

    Args:
        rule: allowed numbers of steps.
        hop: samples per step.
        extra: steps in addition to hops, 1 for centered frames.
        fewest: minimum number of samples.
    """

    rule: SizeRule
    hop: int = 1
    extra: int = 0
    fewest: int = 1

    @classmethod
    def for_mel(cls, rule: SizeRule, mel: MelSpec) -> LengthRule:
        """Return the rule for spectrogram frames. Mirroring the ends needs more than half a
        window.
        """
        return cls(rule, mel.hop, 1, mel.n_fft // 2 + 1)

    def allows(self, num_samples: int) -> bool:
        """Return whether rows may have this length."""
        whole, size = num_samples % self.hop == 0, num_samples // self.hop + self.extra
        return num_samples >= self.fewest and whole and self.rule.allows(size)

    def at_most(self, num_samples: int) -> int | None:
        """Return the largest allowed length up to `num_samples`, or None."""
        highest = num_samples // self.hop + self.extra
        if self.rule.maximum is not None:
            highest = min(highest, self.rule.maximum)
        lengths = (
            (size - self.extra) * self.hop
            for size in range(highest, max(highest - self.rule.multiple, 0), -1)
        )
        return next((length for length in lengths if self.allows(length)), None)

    def at_least(self, num_samples: int) -> int | None:
        """Return the smallest allowed length from `num_samples` up, or None."""
        lowest = max(-(-max(num_samples, self.fewest) // self.hop) + self.extra, self.rule.minimum)
        lengths = (
            (size - self.extra) * self.hop for size in range(lowest, lowest + self.rule.multiple)
        )
        return next((length for length in lengths if self.allows(length)), None)


@dataclass(frozen=True)
class Cut:
    """The frames of a file that a row needs, and which of the resampled frames it keeps.

    Args:
        start, stop: frames to read, including context.
        skip: resampled frames of context at the start.
        count: resampled frames to keep.
    """

    start: int
    stop: int
    skip: int
    count: int


def resampled_count(num_frames: int, from_hz: int, to_hz: int) -> int:
    """Return the number of frames after resampling, rounded to nearest; halves are decided by the
    floats that soxr computes.
    """
    return int(num_frames / (from_hz / to_hz) + 0.5)


def find_cut(first: int, count: int, num_frames: int, from_hz: int, to_hz: int) -> Cut:
    """Return what to read for `count` frames starting at `first`, from a file of `num_frames`
    frames that is resampled as a whole.

    Reading starts at a frame that is also a frame of the other rate, so that both rates count from
    there.
    """
    if from_hz == to_hz:
        return Cut(first, first + count, 0, count)
    step = from_hz // math.gcd(from_hz, to_hz)
    context = math.ceil(CONTEXT_SAMPLES * max(1, from_hz / to_hz))
    start = max(first * from_hz // to_hz - context, 0) // step * step
    stop = min(-(-(first + count) * from_hz // to_hz) + context, num_frames)
    return Cut(start, stop, first - start * to_hz // from_hz, count)


def draw_fraction(seed: int, key: str, view: str) -> float:
    """Return a number, uniformly distributed over [0, 1), that depends only on seed, key and
    view.
    """
    digest = hashlib.sha256(json.dumps([seed, key, view]).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
