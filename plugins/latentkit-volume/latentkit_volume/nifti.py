"""NIfTI bytes to voxels whose axes lie in one known order, with the way from there to the patient."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt2axcodes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from latentkit.errors import SampleError

FORMATS = (nibabel.Nifti1Image, nibabel.Nifti2Image)
GZIP_START = b"\x1f\x8b"
HEADER_BYTES = 540
"""Of the longer of the two headers."""
CHUNK_BYTES = 1 << 20
MILLIMETRES = {"unknown": 1.0, "meter": 1000.0, "mm": 1.0, "micron": 0.001}
FLATTEST = 1e-3
"""Least volume of a voxel over the product of its sides; what is flatter has no inverse worth having."""
SIDES = (1e-6, 1e6)
"""Shortest and longest side of a voxel in millimetres: others come from damage."""
LARGEST_VALUE = 1e30
"""Of a voxel: sums and differences of such are still float32 numbers."""
BROKEN = (HeaderDataError, ImageFileError, WrapStructError, ValueError, KeyError, OverflowError, OSError, EOFError, zlib.error)
"""What nibabel and gzip raise on damaged bytes, which are in memory: none of these is a file out of reach."""

Floats = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Volume:
    """What a file holds.

    Args:
        voxels: (C, D, H, W) float32, the file's values with its slope and intercept applied. Along D, H and W the patient's axes that
            lie nearest to up (towards the head), front and right.
        affine: 4 x 4, from numbers of voxels (d, h, w, 1) to millimetres right, front and up (R, A, S) of the scanner's origin.
        axes: where the file's own three axes point, such as "LPS".
    """

    voxels: Voxels
    affine: Floats
    axes: str


def read_volume(media: bytes, frame: int | Literal["channels"] | None, assume: str | None, max_voxels: int) -> Volume:
    """The volume in the bytes of a .nii or .nii.gz file.

    Args:
        media: NIfTI-1 or NIfTI-2 in a single file, as it is or gzipped.
        frame: of a 4-D volume: the one to take, or all as channels; None takes none.
        assume: where the axes point in a file that doesn't say it; None refuses it.
        max_voxels: that are unpacked.

    Raises:
        SampleError: not such a file, damaged, or a volume that can't be used; says why.
    """
    stream = gzip.GzipFile(fileobj=io.BytesIO(media)) if media.startswith(GZIP_START) else io.BytesIO(media)
    with _explained("its header can't be read"):
        image = _open(stream)
        shape, dtype = image.header.get_data_shape(), image.header.get_data_dtype()
        spatial = _spatial_shape(shape, frame)
        if math.prod(shape) > max_voxels:
            raise SampleError(f"{' x '.join(map(str, shape))} voxels, more than max_voxels: {max_voxels}")
        if dtype.kind not in "iuf":
            raise SampleError(f"voxels of type {dtype}, expected one number each")
        affine = _affine(image.header, assume)
    with _explained("it ends before its last voxel, or its packing is broken"):
        voxels = _voxels(image, frame)
        while stream.read(CHUNK_BYTES):  # a checksum stands at the end
            pass
    num_bad = voxels.size - np.count_nonzero(np.abs(voxels) < LARGEST_VALUE)
    if num_bad:
        raise SampleError(f"{num_bad} of {voxels.size} voxels are NaN, infinite, or beyond {LARGEST_VALUE:g}")
    # From the file's order to right, front, up, and from there to up, front, right.
    turn = io_orientation(affine)
    turned = apply_orientation(voxels, turn).transpose(3, 2, 1, 0)
    affine = (affine @ inv_ornt_aff(turn, spatial))[:, [2, 1, 0, 3]]
    return Volume(np.ascontiguousarray(turned), affine, "".join(ornt2axcodes(turn)))


@contextmanager
def _explained(reason: str) -> Iterator[None]:
    """Raise `SampleError` for whatever damaged bytes made nibabel or gzip raise."""
    try:
        yield
    except BROKEN as error:
        raise SampleError(f"a damaged NIfTI file: {reason}") from error


def _open(stream: gzip.GzipFile | io.BytesIO) -> Any:
    """The image, of which only the header is read.

    Raises:
        SampleError: the stream isn't one.
    """
    start = stream.read(HEADER_BYTES)
    found = [kind for kind in FORMATS if kind.header_class.may_contain_header(start)]
    if not found:
        raise SampleError("not a NIfTI file (.nii or .nii.gz)")
    stream.seek(0)
    return found[0].from_stream(stream)


def _spatial_shape(shape: tuple[int, ...], frame: int | Literal["channels"] | None) -> tuple[int, int, int]:
    text = " x ".join(map(str, shape))
    if len(shape) < 3 or any(size > 1 for size in shape[4:]):
        raise SampleError(f"a {len(shape)}-D volume of {text} voxels where 3-D is needed")
    if min(shape) < 1:
        raise SampleError(f"a volume of {text} voxels, which is none")
    num_frames = shape[3] if len(shape) > 3 else 1
    if num_frames > 1 and frame is None:
        raise SampleError(f"a 4-D volume of {text} voxels where 3-D is needed; modality.with.frame takes one of its {num_frames} frames")
    if isinstance(frame, int) and frame >= num_frames:
        raise SampleError(f"frame {frame} is wanted, and a volume of {text} voxels has {num_frames}, counted from 0")
    return shape[0], shape[1], shape[2]


def _affine(header: Any, assume: str | None) -> Floats:
    """From numbers of voxels in the file's order to millimetres right, front and up."""
    if int(header["sform_code"]) or int(header["qform_code"]):
        affine = np.asarray(header.get_best_affine(), np.float64)
        affine[:3] *= MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    elif assume is None:
        raise SampleError("the file doesn't say where its axes point (sform_code and qform_code are 0); modality.with.assume can say it")
    else:
        affine = np.diag([0.0, 0.0, 0.0, 1.0])
        for axis, (row, sign) in enumerate(axcodes2ornt(assume)):
            affine[int(row), axis] = sign * header.get_zooms()[axis]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= FLATTEST * np.prod(lengths):
        raise SampleError("the file's affine is singular or not finite: its voxels have no place in space")
    if lengths.min() < SIDES[0] or lengths.max() > SIDES[1]:
        raise SampleError(f"voxels of {' x '.join(f'{length:g}' for length in lengths)} mm")
    return affine


def _voxels(image: Any, frame: int | Literal["channels"] | None) -> Voxels:
    """(X, Y, Z, C) float32, in the file's order."""
    wanted = slice(None) if frame == "channels" else slice(frame or 0, (frame or 0) + 1)
    shape = image.header.get_data_shape()
    voxels = np.asarray(image.dataobj if len(shape) == 3 else image.dataobj[:, :, :, wanted])
    with np.errstate(over="ignore"):  # of 64-bit values, which are then infinite, and refused
        return voxels.reshape(*shape[:3], -1).astype(np.float32, copy=False)
