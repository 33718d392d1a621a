"""Names of views, each of a patch of a volume. Loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

GRID = re.compile(r"grid-([1-9]\d?)x([1-9]\d?)x([1-9]\d?)(?:-([1-9]\d*))?")
CROP = re.compile(r"crop-[1-9]\d*")
VIEW_HELP = (
    "plain (the patch that crop says), crop-1, crop-2 ... (patches drawn from seed and key),"
    " grid-2x3x3 (so many patches along D, H and W, evenly spread from border to border; short for"
    " grid-2x3x3-1 to grid-2x3x3-18)"
)

Shape = tuple[int, int, int]


def expand_views(views: Sequence[str]) -> list[str]:
    """Return the names one by one, each grid as all of its patches.

    Raises:
        ValueError: a name is unknown or occurs twice.
    """
    names: list[str] = []
    for view in views:
        grid = GRID.fullmatch(view)
        if grid is not None and grid[4] is None:
            names += [
                f"{view}-{number}"
                for number in range(1, math.prod(map(int, grid.groups()[:3])) + 1)
            ]
        elif (
            view == "plain"
            or CROP.fullmatch(view)
            or (grid is not None and int(grid[4]) <= math.prod(map(int, grid.groups()[:3])))
        ):
            names.append(view)
        else:
            raise ValueError(f"unknown view {view!r}; known: {VIEW_HELP}")
    if len(set(names)) < len(names):
        raise ValueError("a view is listed twice")
    return names


def grid_fractions(view: str) -> tuple[float, float, float] | None:
    """Return the position of a grid's patch along D, H and W, from the first possible position (0)
    to the last (1); None for another view.

    Patches are numbered along W first, then H, then D. The only patch along an axis is in its
    center.
    """
    grid = GRID.fullmatch(view)
    if grid is None:
        return None
    depth, height, width, number = (int(text) for text in grid.groups())
    places = (number - 1) // (height * width), (number - 1) // width % height, (number - 1) % width
    first, second, third = (
        place / (count - 1) if count > 1 else 0.5
        for place, count in zip(places, (depth, height, width), strict=True)
    )
    return first, second, third


def place_patch(volume: Shape, patch: Shape, fractions: Sequence[float]) -> Shape:
    """Return the first voxel of a patch in a volume, from fractions between the first possible
    position (0) and the last (1), all along D, H and W.

    If the volume is smaller than the patch, it is in the patch's center, and the first voxel's
    number is negative.
    """
    room = [whole - part for whole, part in zip(volume, patch, strict=True)]
    first, second, third = (
        int(fraction * left + 0.5) if left > 0 else left // 2
        for left, fraction in zip(room, fractions, strict=True)
    )
    return first, second, third
