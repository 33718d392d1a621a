"""Computes which part of an image a view keeps, and its target shape, from heights and widths
alone.

Shapes are (height, width) in pixels everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from latentkit.contracts import SizeRule

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, int]


@dataclass(frozen=True)
class Shrink:
    """How an image was made smaller while it was decoded.

    Args:
        divisor: pixels of the original per pixel of the smaller image, along each side.
        top: position of the original's upper edge in the smaller image, in its pixels. It is inside
            the image if that was flipped, because the row that only partly shows the original is
            then first.
        left: the same for the left edge.
    """

    divisor: int = 1
    top: float = 0.0
    left: float = 0.0


@dataclass(frozen=True)
class Box:
    """A part of an image, in pixels of the upright original, counted from its top left corner."""

    top: float
    left: float
    height: float
    width: float

    def edges(self) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom: the order that Pillow expects."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def shrunk(self, shrink: Shrink) -> Box:
        """Return the same part in an image that was made smaller."""
        top, left, height, width = (
            side / shrink.divisor for side in (self.top, self.left, self.height, self.width)
        )
        return Box(top + shrink.top, left + shrink.left, height, width)

    def rounded(self) -> list[float]:
        """Return top, left, height, width, rounded to a ten-thousandth of a pixel, for the
        index.
        """
        return [round(value, 4) for value in (self.top, self.left, self.height, self.width)]


# ---------------------------------------------------------------- crops


def whole(image: Shape) -> Box:
    """Return the box of a whole image."""
    return Box(0.0, 0.0, float(image[0]), float(image[1]))


def crop_box(
    image: Shape, target: Shape, across: float = 0.5, down: float = 0.5, scale: float = 1.0
) -> Box:
    """Return the part of `image` with the aspect ratio of `target`.

    Args:
        image: (height, width) to crop from.
        target: (height, width) whose aspect ratio the part has.
        across: position of the part from left (0) to right (1); 0.5 is the middle.
        down: position of the part from top (0) to bottom (1).
        scale: side of the part relative to the largest part that fits, above 0, at most 1.
    """
    height, width = image
    pixels_per_target_pixel = min(height / target[0], width / target[1])
    # The largest part touches two borders; min() prevents rounding from moving it outside.
    part_height = min(float(height), target[0] * pixels_per_target_pixel) * scale
    part_width = min(float(width), target[1] * pixels_per_target_pixel) * scale
    return Box(
        (height - part_height) * down, (width - part_width) * across, part_height, part_width
    )


def draw_fractions(seed: int, key: str, view: str, count: int) -> list[float]:
    """Return `count` numbers, uniformly distributed over [0, 1), that depend only on seed, key and
    view: the same in every process and release.
    """
    digest = hashlib.sha256(json.dumps([seed, key, view]).encode("ascii")).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "big") / 2**64 for i in range(count)]


Numbers = TypeVar("Numbers", float, "np.ndarray[Any, Any]")


def left_out_share(
    height: Numbers, width: Numbers, crop_height: Numbers, crop_width: Numbers
) -> Numbers:
    """Return the share of an image's area, from 0 to 1, that lies outside its crop. Arrays work
    too.

    The arguments are from a row's geometry: `height`, `width`, and `crop[2]`, `crop[3]`.
    """
    share: Numbers = 1 - (crop_height / height) * (crop_width / width)
    return share


# ---------------------------------------------------------------- what an encoder takes


def nearest_allowed(size: int, rule: SizeRule) -> Sequence[int]:
    """Return the next smaller and the next larger size that a rule allows, if they exist."""
    return rule.neighbors(size)
