"""Voxels with axes in one fixed order, and the affine from there to the patient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
)

from latentkit.errors import SampleError

FLATTEST = 1e-3
"""Least volume of a voxel relative to the product of its sides. A flatter one has no useful
inverse.
"""
SIDES = (1e-6, 1e6)
"""Shortest and longest side of a voxel in millimeters. Others come from damage."""
LARGEST_VALUE = 1e30
"""Largest value of a voxel. Sums and differences of such values are still float32 numbers."""

Floats = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.float32]
Frame = int | Literal["channels"] | None
"""For a 4-D volume, the frame to use, or all as channels; None refuses 4-D volumes."""


@dataclass(frozen=True)
class Volume:
    """Content of a file.

    Args:
        voxels: (C, D, H, W) float32, the file's values with its slope and intercept applied. D, H
            and W are the patient's axes nearest to up (towards the head), front and right.
        affine: 4 x 4, from numbers of voxels (d, h, w, 1) to millimeters right, front and up (R, A,
            S) of the scanner's origin.
        axes: where the file's own three axes point, such as "LPS".
        remarks: what a user should know about how it was read.
    """

    voxels: Voxels
    affine: Floats
    axes: str
    remarks: tuple[str, ...] = ()


def make_volume(voxels: Voxels, affine: Floats, remarks: tuple[str, ...] = ()) -> Volume:
    """Return the volume of voxels in any order.

    Args:
        voxels: (X, Y, Z, C) float32, in the file's order.
        affine: 4 x 4, from numbers of voxels in that order to millimeters right, front and up.
        remarks: remarks on the volume.

    Raises:
        SampleError: values aren't finite or are too large.
    """
    num_bad = voxels.size - np.count_nonzero(np.abs(voxels) < LARGEST_VALUE)
    if num_bad:
        raise SampleError(
            f"{num_bad} of {voxels.size} voxels are NaN, infinite, or beyond {LARGEST_VALUE:g}"
        )
    # From the file's order to right, front, up, and from there to up, front, right.
    turn = io_orientation(affine)
    turned = apply_orientation(voxels, turn).transpose(3, 2, 1, 0)
    affine = (affine @ inv_ornt_aff(turn, voxels.shape[:3]))[:, [2, 1, 0, 3]]
    return Volume(np.ascontiguousarray(turned), affine, "".join(ornt2axcodes(turn)), remarks)


def check_size(shape: tuple[int, ...], max_voxels: int) -> None:
    """Refuse a volume that is too large to unpack.

    Raises:
        SampleError: there are more voxels than that.
    """
    if math.prod(shape) > max_voxels:
        text = " x ".join(map(str, shape))
        raise SampleError(f"{text} voxels, more than max_voxels: {max_voxels}")


def check_frame(shape: tuple[int, ...], num_frames: int, frame: Frame) -> None:
    """Check that the wanted frames exist.

    Raises:
        SampleError: the volume is 4-D where 3-D is needed, or the frame doesn't exist.
    """
    text = " x ".join(map(str, shape))
    if min(shape) < 1:
        raise SampleError(f"a volume of {text} voxels, which is none")
    if num_frames > 1 and frame is None:
        raise SampleError(
            f"a 4-D volume of {text} voxels where 3-D is needed; "
            f"modality.with.frame takes one of its {num_frames} frames"
        )
    if isinstance(frame, int) and frame >= num_frames:
        raise SampleError(
            f"frame {frame} is requested, but a volume of {text} voxels has {num_frames}, counted"
            " from 0"
        )


def take_frames(voxels: npt.NDArray[np.generic], frame: Frame) -> Voxels:
    """Return (X, Y, Z, C) float32 of (X, Y, Z, frames), with the wanted frames."""
    wanted = slice(None) if frame == "channels" else slice(frame or 0, (frame or 0) + 1)
    with np.errstate(over="ignore"):  # 64-bit values then become infinite and are refused
        return voxels[..., wanted].astype(np.float32, copy=False)


def assumed_affine(assume: str | None, sides: npt.ArrayLike, what: str) -> Floats:
    """Return the affine of a file that doesn't say where its axes point.

    Args:
        assume: where they point, as letters.
        sides: sides of a voxel in millimeters.
        what: what is missing in the file, for the error.

    Raises:
        SampleError: `assume` is None.
    """
    if assume is None:
        raise SampleError(
            f"the file doesn't say where its axes point ({what}); set modality.with.assume"
        )
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, ((row, sign), side) in enumerate(
        zip(axcodes2ornt(assume), np.ravel(sides), strict=False)
    ):
        affine[int(row), axis] = sign * side
    return affine


def check_affine(affine: Floats) -> Floats:
    """Return the affine after checking that voxels have a position in space.

    Raises:
        SampleError: the affine is singular or not finite, or voxels have an impossible size.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    flattest = FLATTEST * np.prod(lengths)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= flattest:
        raise SampleError(
            "the file's affine is singular or not finite: its voxels have no position in space"
        )
    if lengths.min() < SIDES[0] or lengths.max() > SIDES[1]:
        raise SampleError(f"voxels of {' x '.join(f'{length:g}' for length in lengths)} mm")
    return affine
