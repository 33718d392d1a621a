"""Draws volumes as an image: the three middle slices of each, upright."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GAP_PIXELS = 4
BACKGROUND = 64
SMALLEST_SIDE_PIXELS = 96
"""Smallest size of a volume's largest side. Smaller volumes are enlarged, a voxel to whole
pixels.
"""


def draw_sheet(
    rows: Sequence[Sequence[Tensor]], limits: tuple[float, float], sides: tuple[float, float, float]
) -> Image.Image:
    """Return one gray image with one row per inner sequence: for each volume its axial, coronal and
    sagittal slice, channels below each other.

    They are seen from above (nose up), from behind and from the right (heads up), so the patient's
    right is on the right in the first two.

    Args:
        rows: (C, D, H, W) each, any float dtype and device; D up, H to the front, W to the right.
        limits: values that become black and white; other values are clipped.
        sides: size of a voxel along D, H and W in any unit; slices are stretched by it.

    Raises:
        ValueError: there is no volume, or a tensor has another shape.
    """
    strips = [[_strip(volume, limits, sides) for volume in row] for row in rows if len(row)]
    if not strips:
        raise ValueError("render needs at least one tensor, got none")
    lines = [_side_by_side(strip) for strip in strips]
    return _below_each_other(lines)


def _strip(
    volume: Tensor, limits: tuple[float, float], sides: tuple[float, float, float]
) -> Image.Image:
    """Return the three slices of all channels."""
    if volume.ndim != 4 or min(volume.shape) < 1:
        raise ValueError(f"render takes tensors (C, D, H, W), got shape {tuple(volume.shape)}")
    values = (volume.detach().to("cpu", torch.float32) - limits[0]) * (
        255 / (limits[1] - limits[0])
    )
    gray = values.nan_to_num(0.0).clamp(0, 255).round().to(torch.uint8).numpy()
    return _below_each_other([_side_by_side(_slices(channel, sides)) for channel in gray])


def _slices(
    channel: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], sides: tuple[float, float, float]
) -> list[Image.Image]:
    """Return the axial (rows H, columns W), coronal (D, W) and sagittal (D, H) slice, with the
    first voxel of the rows at the bottom.
    """
    depth, height, width = (size // 2 for size in channel.shape)
    planes = ((channel[depth], 1, 2), (channel[:, height], 0, 2), (channel[:, :, width], 0, 1))
    finest = min(sides)
    zoom = max(1, -(-SMALLEST_SIDE_PIXELS // max(channel.shape)))
    images = []
    for plane, down, across in planes:
        size = [
            max(1, round(zoom * channel.shape[axis] * sides[axis] / finest))
            for axis in (across, down)
        ]
        images.append(
            Image.fromarray(np.ascontiguousarray(plane[::-1])).resize(
                (size[0], size[1]), Image.Resampling.NEAREST
            )
        )
    return images


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    gaps = GAP_PIXELS * (len(images) - 1)
    sheet = Image.new(
        "L",
        (
            sum(image.width for image in images) + gaps,
            max(image.height for image in images),
        ),
        BACKGROUND,
    )
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + GAP_PIXELS
    return sheet


def _below_each_other(images: Sequence[Image.Image]) -> Image.Image:
    gaps = GAP_PIXELS * (len(images) - 1)
    sheet = Image.new(
        "L",
        (
            max(image.width for image in images),
            sum(image.height for image in images) + gaps,
        ),
        BACKGROUND,
    )
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + GAP_PIXELS
    return sheet
