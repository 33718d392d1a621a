"""Interpolates patches of volumes, reading only the voxels they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform, gaussian_filter1d

from latentkit.errors import SampleError
from latentkit_volume.views import Shape
from latentkit_volume.volumes import Floats, Volume, Voxels

PATIENT_AXES = np.eye(3)[:, ::-1]
"""Up, front and right, one column each, in millimeters right, front and up."""
LARGEST_SHEAR = 0.02
"""Cosine of the angle between two axes that still count as perpendicular: about a degree off."""
WIDTHS_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""
REACH = 4.0
"""Standard deviations at which the Gaussian is cut off."""


@dataclass(frozen=True)
class Grid:
    """Positions of new voxels: new voxel t (numbers along D, H, W) is the volume's voxel matrix @ t
    + offset.

    Args:
        matrix, offset: 3 x 3 and 3, in voxels of the volume.
        shape: number of new voxels that cover the volume.
        affine: 4 x 4, from numbers of new voxels to millimeters right, front and up.
    """

    matrix: Floats
    offset: Floats
    shape: Shape
    affine: Floats


def make_grid(
    volume: Volume, spacing: float | tuple[float, float, float] | None, to_patient: bool
) -> Grid:
    """Return the grid with a spacing in millimeters (None: the volume's own) around the volume's
    center.

    Args:
        to_patient: whether the grid follows the patient's true axes and covers the whole volume,
            instead of following the volume's own axes.

    Raises:
        SampleError: the volume's own axes aren't perpendicular.
    """
    linear = volume.affine[:3, :3]
    own = np.linalg.norm(linear, axis=0)
    axes = PATIENT_AXES if to_patient else linear / own
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > LARGEST_SHEAR:
        degrees = math.degrees(math.asin(min(float(shear), 1.0)))
        raise SampleError(
            f"the volume's axes are {degrees:.1f} degrees off being perpendicular; set"
            " modality.with.align: patient"
        )
    size = np.asarray(volume.voxels.shape[1:], np.float64)
    steps = own if spacing is None else np.broadcast_to(np.asarray(spacing, np.float64), 3)
    counts = np.maximum(np.rint(np.abs(axes.T @ linear) @ size / steps), 1)
    middle = linear @ ((size - 1) / 2) + volume.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = axes * steps
    affine[:3, 3] = middle - affine[:3, :3] @ ((counts - 1) / 2)
    matrix = np.linalg.solve(linear, affine[:3, :3]).astype(np.float64)
    offset = np.linalg.solve(linear, affine[:3, 3] - volume.affine[:3, 3]).astype(np.float64)
    first, second, third = (int(count) for count in counts)
    # Rounded, so the grid with a volume's own spacing is exactly that volume's.
    return Grid(matrix.round(9), offset.round(9), (first, second, third), affine)


def sample_patch(
    voxels: Voxels, grid: Grid, start: Sequence[int], shape: Shape, limits: tuple[float, float]
) -> Voxels:
    """Return a patch of one channel, clipped to `limits`: float32 of `shape`. Outside the volume it
    has the lower limit.

    Interpolation is linear. Along axes on which voxels become fewer, a Gaussian is applied first,
    whose width grows with the new voxels: Cardoso et al. 2015, "Scale Factor Point Spread Function
    Matching", with the voxels' sides as full widths at half maximum.

    Args:
        voxels: voxels of the volume, (D, H, W).
        start: number of the patch's first voxel in the grid.
    """
    offset = grid.offset + grid.matrix @ np.asarray(start, np.float64)
    ratios = np.linalg.norm(grid.matrix, axis=1)
    sigmas = np.sqrt(np.maximum(ratios**2 - 1, 0)) / WIDTHS_PER_SIGMA
    far = np.asarray(shape) - 1
    lowest, highest = (
        offset + np.minimum(grid.matrix, 0) @ far,
        offset + np.maximum(grid.matrix, 0) @ far,
    )
    margin, size = np.ceil(REACH * sigmas) + 1, np.asarray(voxels.shape)
    first = np.clip(np.floor(lowest) - margin, 0, size - 1).astype(int)
    last = np.clip(np.ceil(highest) + margin, first, size - 1).astype(int)
    # Clipped before it is interpolated: what lies far outside the window (metal, or the scanner's
    # own padding) doesn't bleed into it.
    part = voxels[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))].clip(*limits)
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            part = gaussian_filter1d(part, sigma, axis, mode="nearest", truncate=REACH)
    diagonal = np.diag(grid.matrix)
    matrix = (
        diagonal if np.array_equal(grid.matrix, np.diag(diagonal)) else grid.matrix
    )  # scipy is faster without the zeros
    values: Voxels = affine_transform(
        part, matrix, offset - first, shape, np.float32, order=1, mode="nearest"
    )
    values[~_is_inside(grid.matrix, offset, shape, size)] = limits[0]
    return values


def _is_inside(
    matrix: Floats, offset: Floats, shape: Shape, size: npt.NDArray[np.int_]
) -> npt.NDArray[np.bool_]:
    """Return which voxels of a patch have their center in a voxel of the volume."""
    numbers = np.ogrid[tuple(slice(count) for count in shape)]
    inside = np.ones(shape, bool)
    for row, start, count in zip(matrix, offset, size, strict=True):
        place = start + sum(
            factor * number for factor, number in zip(row, numbers, strict=True) if factor
        )
        inside &= (place >= -0.5) & (place <= count - 0.5)
    return inside
