"""Applies the options of `FramingConfig` to one image: its target shape, and the part of it that a
view shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from latentkit.errors import SampleError, SourceError
from latentkit.modalities.buckets import bucket_shapes, nearest_shape
from latentkit.modalities.geometry import Box, Shape, crop_box, draw_fractions, whole

if TYPE_CHECKING:
    from latentkit.modalities.options import FramingConfig


def target_shapes(config: FramingConfig) -> list[Shape]:
    """Return the shapes that images are prepared to."""
    if config.buckets is None:
        return [(config.size, config.size) if isinstance(config.size, int) else config.size]
    buckets = config.buckets
    if buckets.area is None:
        return cast("list[Shape]", buckets.shapes)  # the config made a list of a name
    return bucket_shapes(buckets.area, buckets.step, buckets.min, buckets.max, buckets.aspect)


def check_small(config: FramingConfig, key: str, image: Shape) -> None:
    """Check that an image of this shape is large enough or may be enlarged.

    Raises:
        SampleError: the image is too small and `on_small` is `skip`.
        SourceError: the image is too small and `on_small` is `fail`.
    """
    if config.on_small == "upscale":
        return
    size = f"{image[1]} x {image[0]} pixels (width x height)"
    if config.min_size == "target":
        shape = nearest_shape(target_shapes(config), image)
        if image[0] >= shape[0] and image[1] >= shape[1]:
            return
        reason = f"{size}, too small for {shape[1]} x {shape[0]}: min_size is target"
    elif min(image) < config.min_size:
        reason = f"{size}, too small: min_size is {config.min_size}"
    else:
        return
    if config.on_small == "skip":
        raise SampleError(reason)
    raise SourceError(
        f"sample {key!r}: {reason}; lower modality.with.min_size, or set on_small to skip or"
        " upscale"
    )


ENLARGED_ADVICE = "modality.with.min_size: target with on_small: skip leaves such samples out"
ENLARGED = f"enlarged to the target size, at most twofold ({ENLARGED_ADVICE})"
ENLARGED_FAR = f"enlarged to the target size, more than twofold ({ENLARGED_ADVICE})"


def enlarged_remarks(box: Box, shape: Shape) -> list[str]:
    """Return a remark if a view shows fewer pixels of the image than the view has: one of two
    texts, or nothing.

    Args:
        box: the part of the image that the view shows.
        shape: the shape that it is prepared to.
    """
    factor = max(shape[0] / box.height, shape[1] / box.width)
    if factor <= 1 + 1e-6:  # rounding in the box, not a pixel
        return []
    return [ENLARGED if factor <= 2 else ENLARGED_FAR]


def unflipped(view: str) -> str:
    """Return the view that a mirrored one mirrors: "plain" for "hflip", "crop-2" for "hflip-2".
    Other views are returned unchanged.
    """
    return "plain" if view == "hflip" else view.replace("hflip-", "crop-")


def view_box(
    config: FramingConfig, seed: int, key: str, view: str, image: Shape, shape: Shape
) -> Box:
    """Return the part of an upright image that a view shows, before it is mirrored."""
    if view == "plain" and config.crop == "none":
        return whole(image)
    if view == "plain" and config.crop == "center":
        return crop_box(image, shape)
    across, down, zoom = draw_fractions(seed, key, view, 3)
    smallest, largest = config.crop_scale
    return crop_box(image, shape, across, down, smallest + (largest - smallest) * zoom)
