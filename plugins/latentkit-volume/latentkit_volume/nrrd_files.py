"""Reads a volume from NRRD bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import math
import zlib
from typing import Any

import numpy as np

from latentkit.errors import SampleError
from latentkit_volume.volumes import (
    Floats,
    Frame,
    Volume,
    assumed_affine,
    check_affine,
    check_frame,
    check_size,
    make_volume,
    take_frames,
)

INSTALL = "pip install 'latentkit-volume[formats]'"

NRRD_START = b"NRRD"

SPACES = {
    "right-anterior-superior": "RAS",
    "left-anterior-superior": "LAS",
    "left-posterior-superior": "LPS",
}
"""From the format's definition (teem.sourceforge.net/nrrd/format.html#space), without those with
time.
"""

BROKEN = (LookupError, TypeError, ValueError, OSError, EOFError, zlib.error)
"""What pynrrd and numpy raise on damaged bytes, which are in memory."""

DECOMPRESSORS: dict[str, Any] = {
    **{"gzip": gzip.open, "gz": gzip.open},
    **{"bzip2": bz2.open, "bz2": bz2.open},
}
"""Opens each encoding."""

CHUNK_BYTES = 1 << 20

MILLIMETERS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "microns": 0.001, "micron": 0.001}


def read_nrrd(media: bytes, frame: Frame, assume: str | None, max_voxels: int) -> Volume:
    """Return the volume in the bytes of a .nrrd file; see `read_volume`.

    Raises:
        SampleError: the file is damaged or can't be used, or pynrrd is missing.
    """
    try:
        import nrrd
        from nrrd.errors import NRRDError
    except ImportError:
        raise SampleError(f"an NRRD file; reading it needs pynrrd: {INSTALL}") from None
    stream = io.BytesIO(media)
    try:
        header: dict[str, Any] = nrrd.read_header(stream)
        if "data file" in header or "datafile" in header:
            raise SampleError(
                "a detached NRRD header (.nhdr), whose voxels are in another file; "
                "write both into one .nrrd (teem: unu save -f nrrd -i IN.nhdr -o OUT.nrrd)"
            )
        sizes = tuple(int(size) for size in header["sizes"])
        check_size(sizes, max_voxels)
        voxels, axes = _frames_last(_read_voxels(header, stream), header)
        affine = _affine(header, axes, assume)
    except BROKEN as error:
        raise SampleError("a damaged NRRD file: its header or its voxels can't be read") from error
    except NRRDError as error:
        raise SampleError(f"a damaged NRRD file: {error}") from error
    check_frame(sizes, voxels.shape[3], frame)
    return make_volume(take_frames(voxels, frame), affine)


def _read_voxels(header: dict[str, Any], stream: io.BytesIO) -> Any:
    """Return the array after a header. pynrrd would unpack everything, whatever its size."""
    import nrrd

    opener = DECOMPRESSORS.get(str(header.get("encoding")))
    if opener is None:
        return nrrd.read_data(header, stream)
    sizes = [int(size) for size in header["sizes"]]
    # Only pynrrd knows the names of the types.
    one = {"sizes": np.ones(len(sizes), int), "encoding": "raw"}
    kept = {name: header[name] for name in ("type", "dimension", "endian") if name in header}
    dtype = nrrd.read_data(kept | one, io.BytesIO(bytes(16))).dtype
    num_bytes = math.prod(sizes) * dtype.itemsize
    num_lines = header.get("line skip", header.get("lineskip", 0))
    for _ in itertools.islice(stream, num_lines):
        pass  # these lie in front of what is packed, the bytes to skip in it
    rest = io.BytesIO(stream.read())
    with opener(rest) as unpacked:
        voxels = _unpack(unpacked, num_bytes, header.get("byte skip", header.get("byteskip", 0)))
    return np.frombuffer(voxels, dtype).reshape(sizes, order="F")


def _unpack(stream: gzip.GzipFile | bz2.BZ2File, num_bytes: int, skip: int) -> bytearray:
    """Return `num_bytes` bytes after the ones to skip, or the last ones if `skip` is -1.

    Raises:
        SampleError: there are more bytes.
    """
    if skip < -1:
        raise SampleError(f"a damaged NRRD file: byte skip: {skip}, expected -1 or more")
    found = bytearray()
    if skip > 0:
        stream.seek(skip)
    while chunk := stream.read(CHUNK_BYTES):
        found += chunk
        if skip == -1:
            del found[: max(len(found) - num_bytes, 0)]
        elif len(found) > num_bytes:
            raise SampleError(
                f"a damaged NRRD file: its voxels take {num_bytes} bytes by its header, "
                "and it unpacks to more"
            )
    return found


def _frames_last(voxels: Any, header: dict[str, Any]) -> tuple[Any, list[int]]:
    """Return an array as (X, Y, Z, frames), and which of its axes are X, Y and Z."""
    if voxels.dtype.kind not in "iuf":
        raise SampleError(f"voxels of type {voxels.dtype}, expected one number each")
    text = " x ".join(map(str, voxels.shape))
    directions = header.get("space directions")
    if directions is None:
        axes = list(range(min(3, voxels.ndim)))
    else:
        axes = [
            axis
            for axis, row in enumerate(directions)
            if row is not None and not np.isnan(row).any()
        ]
    others = [axis for axis in range(voxels.ndim) if axis not in axes]
    if len(axes) != 3 or len(others) > 1:
        raise SampleError(f"a {voxels.ndim}-D volume of {text} voxels where 3-D is needed")
    return (
        voxels.transpose([*axes, *others]).reshape(*(voxels.shape[axis] for axis in axes), -1),
        axes,
    )


def _affine(header: dict[str, Any], axes: list[int], assume: str | None) -> Floats:
    """Return the affine from voxel numbers to millimeters right, front and up."""
    space = str(header.get("space", "")).lower()
    letters = SPACES.get(space, space.upper())
    directions = header.get("space directions")
    if letters not in SPACES.values() or directions is None:
        sides = np.asarray(header.get("spacings", np.ones(3)), np.float64)[axes]
        if directions is not None:
            sides = np.linalg.norm([directions[axis] for axis in axes], axis=1)
        return check_affine(assumed_affine(assume, sides, "it has no space, or an unknown one"))
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([directions[axis] for axis in axes])
    affine[:3, 3] = header.get("space origin", np.zeros(3))
    units = header.get("space units", ["mm"] * 3)
    affine[:3] *= np.array([MILLIMETERS.get(str(unit), 1.0) for unit in units])[:, None]
    # To right, front, up.
    affine[:3] *= np.array(
        [1 if found == want else -1 for found, want in zip(letters, "RAS", strict=True)]
    )[:, None]
    return check_affine(affine)
