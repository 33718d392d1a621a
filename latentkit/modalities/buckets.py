"""Aspect-ratio buckets: which shapes exist, and which one an image is assigned to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from latentkit.modalities.geometry import Shape

if TYPE_CHECKING:
    pass


# ---------------------------------------------------------------- buckets

# Podell et al. 2023, SDXL (arXiv:2307.01952), appendix I: height, and the widths trained with it.
_SDXL_WIDTHS = {
    **{512: (2048, 1984, 1920, 1856), 576: (1792, 1728, 1664), 640: (1600, 1536)},
    **{704: (1472, 1408, 1344), 768: (1344, 1280), 832: (1216, 1152), 896: (1152, 1088)},
    **{960: (1088, 1024), 1024: (1024, 960), 1088: (960, 896), 1152: (896, 832), 1216: (832,)},
    **{1280: (768,), 1344: (768,), 1408: (704,), 1472: (704,), 1536: (640,), 1600: (640,)},
    **{1664: (576,), 1728: (576,), 1792: (576,), 1856: (512,), 1920: (512,), 1984: (512,)},
    2048: (512,),
}
SDXL_SHAPES: Sequence[Shape] = sorted(
    (height, width) for height, widths in _SDXL_WIDTHS.items() for width in widths
)


def bucket_shapes(
    area: int, step: int, shortest: int | None, longest: int | None, aspect: float
) -> list[Shape]:
    """Return all bucket shapes from the flattest to the tallest: the square, and for each side the
    largest other side that the area allows.

    Args:
        area: most pixels of a bucket.
        step: all sides are multiples of this.
        shortest: shortest side; None: half the side of the square with that area.
        longest: longest side; None: twice the side of the square with that area.
        aspect: largest ratio of the longer to the shorter side.

    Returns:
        At least one shape, or an empty list when none fits.
    """
    root = math.isqrt(area)
    first = math.ceil((root // 2 if shortest is None else shortest) / step) * step
    last = (2 * root if longest is None else longest) // step * step
    first = max(first, step)
    square = min(root // step * step, last)
    shapes = {(square, square)} if square >= first else set()
    for side in range(first, last + 1, step):
        other = min(area // side // step * step, last)
        if other >= first and max(side, other) <= aspect * min(side, other):
            shapes |= {(side, other), (other, side)}
    return sorted(shapes, key=lambda shape: (shape[0] / shape[1], shape))


def nearest_shape(shapes: Iterable[Shape], image: Shape) -> Shape:
    """Return the shape whose aspect ratio is nearest to the image's on a logarithmic scale. Of
    equally near ones the larger is chosen, then the flatter.
    """
    wanted = math.log(image[0] / image[1])
    # Rounded, because the last bit of a logarithm differs between machines.
    return min(
        shapes,
        key=lambda shape: (
            round(abs(math.log(shape[0] / shape[1]) - wanted), 9),
            -shape[0] * shape[1],
            shape,
        ),
    )
