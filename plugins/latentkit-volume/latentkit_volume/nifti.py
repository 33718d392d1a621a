"""Reads a volume from NIfTI bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from latentkit.errors import SampleError
from latentkit_volume.volumes import (
    Floats,
    Frame,
    Volume,
    Voxels,
    assumed_affine,
    check_affine,
    check_frame,
    check_size,
    make_volume,
    take_frames,
)

FORMATS = (nibabel.Nifti1Image, nibabel.Nifti2Image)
GZIP_START = b"\x1f\x8b"
HEADER_BYTES = 540
"""Bytes of the longer of the two headers."""
CHUNK_BYTES = 1 << 20
MILLIMETERS = {"unknown": 1.0, "meter": 1000.0, "mm": 1.0, "micron": 0.001}
BROKEN = (
    HeaderDataError,
    ImageFileError,
    WrapStructError,
    ValueError,
    KeyError,
    OverflowError,
    OSError,
    EOFError,
    zlib.error,
)
"""What nibabel and gzip raise on damaged bytes. The bytes are in memory, so none of these means an
unreachable file.
"""


def read_volume(media: bytes, frame: Frame, assume: str | None, max_voxels: int) -> Volume:
    """Return the volume in the bytes of a .nii or .nii.gz file.

    Args:
        media: NIfTI-1 or NIfTI-2 in a single file, plain or gzipped.
        frame: for a 4-D volume, the frame to use, or all as channels; None refuses 4-D volumes.
        assume: where the axes point if the file doesn't say it; None refuses such a file.
        max_voxels: most voxels that are unpacked.

    Raises:
        SampleError: the file isn't NIfTI, is damaged, or can't be used; the message says why.
    """
    stream = (
        gzip.GzipFile(fileobj=io.BytesIO(media))
        if media.startswith(GZIP_START)
        else io.BytesIO(media)
    )
    with _as_sample_error("its header can't be read"):
        image = _open(stream)
        shape, dtype = image.header.get_data_shape(), image.header.get_data_dtype()
        _check_shape(shape, frame)
        check_size(shape, max_voxels)
        if dtype.kind not in "iuf":
            raise SampleError(f"voxels of type {dtype}, expected one number each")
        affine = _affine(image.header, assume)
    with _as_sample_error("it ends before its last voxel, or its compression is damaged"):
        voxels = _voxels(image, frame)
        while stream.read(CHUNK_BYTES):  # a checksum is at the end
            pass
    return make_volume(voxels, affine)


@contextmanager
def _as_sample_error(reason: str) -> Iterator[None]:
    """Raise `SampleError` for anything that nibabel or gzip raises on damaged bytes."""
    try:
        yield
    except BROKEN as error:
        raise SampleError(f"a damaged NIfTI file: {reason}") from error


def _open(stream: gzip.GzipFile | io.BytesIO) -> Any:
    """Return the image. Only its header is read.

    Raises:
        SampleError: the stream isn't NIfTI.
    """
    start = stream.read(HEADER_BYTES)
    found = [kind for kind in FORMATS if kind.header_class.may_contain_header(start)]
    if not found:
        raise SampleError("not a NIfTI file (.nii or .nii.gz)")
    stream.seek(0)
    return found[0].from_stream(stream)


def _check_shape(shape: tuple[int, ...], frame: Frame) -> None:
    if len(shape) < 3 or any(size > 1 for size in shape[4:]):
        text = " x ".join(map(str, shape))
        raise SampleError(f"a {len(shape)}-D volume of {text} voxels where 3-D is needed")
    check_frame(shape, shape[3] if len(shape) > 3 else 1, frame)


def _affine(header: Any, assume: str | None) -> Floats:
    """Return the affine from voxel numbers in the file's order to millimeters right, front and
    up.
    """
    if int(header["sform_code"]) or int(header["qform_code"]):
        affine = np.asarray(header.get_best_affine(), np.float64)
        affine[:3] *= MILLIMETERS.get(header.get_xyzt_units()[0], 1.0)
    else:
        missing = "sform_code and qform_code are 0"
        affine = assumed_affine(assume, header.get_zooms()[:3], missing)
    return check_affine(affine)


def _voxels(image: Any, frame: Frame) -> Voxels:
    """Return (X, Y, Z, C) float32, in the file's order."""
    shape = image.header.get_data_shape()
    if frame == "channels" or len(shape) == 3:
        return take_frames(np.asarray(image.dataobj).reshape(*shape[:3], -1), frame)
    # Only one frame of many is read.
    start = frame or 0
    one = np.asarray(image.dataobj[:, :, :, start : start + 1])
    return take_frames(one.reshape(*shape[:3], -1), None)
