"""Which part of a picture a view keeps, and to which shape it goes: pure arithmetic on heights and
widths.

Shapes are (height, width) in pixels, everywhere.
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
    """How a picture was made smaller while it was decoded.

    Args:
        divisor: pixels of the original for one of the shrunk picture, along each side.
        top: where the original's upper edge lies in the shrunk picture, in its pixels: inside it
            where that was turned over, since the row that only partly shows the original then comes
            first.
        left: the same of its left edge.
    """

    divisor: int = 1
    top: float = 0.0
    left: float = 0.0


@dataclass(frozen=True)
class Box:
    """A part of an image, in pixels of the upright original, from its top left corner."""

    top: float
    left: float
    height: float
    width: float

    def edges(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom: the order that Pillow wants."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def shrunk(self, shrink: Shrink) -> Box:
        """The same part of a picture that was shrunk."""
        top, left, height, width = (
            side / shrink.divisor for side in (self.top, self.left, self.height, self.width)
        )
        return Box(top + shrink.top, left + shrink.left, height, width)

    def rounded(self) -> list[float]:
        """Top, left, height, width to a ten-thousandth of a pixel, for a ledger."""
        return [round(value, 4) for value in (self.top, self.left, self.height, self.width)]


# ---------------------------------------------------------------- crops


def whole(picture: Shape) -> Box:
    """All of a picture."""
    return Box(0.0, 0.0, float(picture[0]), float(picture[1]))


def crop_box(
    picture: Shape, target: Shape, across: float = 0.5, down: float = 0.5, scale: float = 1.0
) -> Box:
    """The part of `picture` with the aspect of `target`.

    Args:
        picture: (height, width) that is cut.
        target: (height, width) whose aspect the part has.
        across: where the part lies from left (0) to right (1); 0.5 is the middle.
        down: where it lies from top (0) to bottom (1).
        scale: its side over that of the largest part that fits, above 0, at most 1.
    """
    height, width = picture
    pixels_per_target_pixel = min(height / target[0], width / target[1])
    # The largest part touches two borders: min() keeps rounding from putting it a hair outside.
    part_height = min(float(height), target[0] * pixels_per_target_pixel) * scale
    part_width = min(float(width), target[1] * pixels_per_target_pixel) * scale
    return Box(
        (height - part_height) * down, (width - part_width) * across, part_height, part_width
    )


def draw_fractions(seed: int, key: str, view: str, count: int) -> list[float]:
    """Return `count` numbers in [0, 1) that depend on the names alone, in every release."""
    digest = hashlib.sha256(json.dumps([seed, key, view]).encode("ascii")).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "big") / 2**64 for i in range(count)]


Numbers = TypeVar("Numbers", float, "np.ndarray[Any, Any]")


def left_out_share(
    height: Numbers, width: Numbers, crop_height: Numbers, crop_width: Numbers
) -> Numbers:
    """Return the share of a picture's area outside its crop, from 0 to 1; also of columns.

    The numbers are those of a row's geometry: `height`, `width`, and `crop[2]`, `crop[3]`.
    """
    share: Numbers = 1 - (crop_height / height) * (crop_width / width)
    return share


# ---------------------------------------------------------------- what an encoder takes


def nearest_allowed(size: int, rule: SizeRule) -> Sequence[int]:
    """The next smaller and the next larger size that a rule allows, as far as there are any."""
    return rule.neighbors(size)
