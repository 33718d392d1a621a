"""Reads the files of a DICOM series as a volume: slices sorted by position, values rescaled."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentkit.errors import SampleError
from latentkit_volume.volumes import (
    Floats,
    Frame,
    Volume,
    check_affine,
    check_frame,
    check_size,
    make_volume,
    take_frames,
)

INSTALL = "pip install 'latentkit-volume[formats]'"
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
CONVERTER = "convert it with dcm2niix (github.com/rordenlab/dcm2niix)"

ZIP_START = b"PK\x03\x04"
PREAMBLE_BYTES, DICOM_START = 128, b"DICM"
FILE_META = PREAMBLE_BYTES + len(DICOM_START)
DEFLATED = b"1.2.840.10008.1.2.1.99"

LARGEST_VOXEL_BYTES = 8
"""Bytes of a float64."""

PLACE_TOLERANCE = 0.05
"""Allowed deviation of a slice's position, relative to the slice distance, because scanners round
positions. A missing slice deviates by 1.
"""
PLACE_TOLERANCE_MM = 0.01
DIRECTION_TOLERANCE = 1e-3
"""Allowed difference of direction cosines between slices of one volume."""

BROKEN = (
    *(ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError),
    *(ValueError, EOFError, struct.error, zlib.error),
)
"""What pydicom raises on damaged bytes in addition to its own errors."""

INVERTED = "MONOCHROME1: inverted, so that high values are bright"


def is_dicom(media: bytes) -> bool:
    """Return whether these are the bytes of a DICOM file (PS3.10, section 7.1)."""
    return media[PREAMBLE_BYTES : PREAMBLE_BYTES + len(DICOM_START)] == DICOM_START


@dataclass(frozen=True)
class Slice:
    """One plane of a volume.

    Args:
        place: position of the center of its first pixel: millimeters left, back, up.
        across, down: directions of columns and rows, unit vectors in the same space.
        sides: size of a pixel across and down, in millimeters.
        thickness: distance to the next slice, if the file contains it; else 0.
        values: (rows, columns) float64, rescaled.
        is_inverted: whether bright pixels have low values.
    """

    place: Floats
    across: Floats
    down: Floats
    sides: tuple[float, float]
    thickness: float
    values: Floats
    is_inverted: bool


def read_series(media: bytes, frame: Frame, assume: str | None, max_voxels: int) -> Volume:
    """Return the volume in a zip of DICOM files, as the source `dicom` gives them, or in one file
    with many frames.

    Args:
        media: files of one series.
        frame, assume, max_voxels: see `read_volume`.

    Raises:
        SampleError: slices don't form one volume or can't be decoded, or pydicom is missing.
    """
    slices: list[Slice] = []
    for file in _files(media, max_voxels):
        for one in _read_slices(file, max_voxels):
            slices.append(one)
            _check_alike(slices[0], one)
            check_size((*one.values.shape[::-1], len(slices)), max_voxels)
    if len(slices) == 1 and is_dicom(media):
        raise SampleError(
            "one slice of a DICOM series; source: {use: dicom} makes a volume of a series"
        )
    first = slices[0]
    normal = np.cross(first.across, first.down)
    slices.sort(key=lambda one: float(one.place @ normal))
    shape = (first.values.shape[1], first.values.shape[0], len(slices))
    check_frame(shape, 1, frame)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.across * first.sides[0], first.down * first.sides[1]
    affine[:3, 2] = _step(slices, normal)
    affine[:3, 3] = slices[0].place
    affine[:2] *= -1  # left and back to right and front
    voxels = np.stack([one.values for one in slices], axis=-1).transpose(1, 0, 2)[..., None]
    remarks = (INVERTED,) if any(one.is_inverted for one in slices) else ()
    return make_volume(take_frames(voxels, None), check_affine(affine), remarks)


# ---------------------------------------------------------------- places


def _check_alike(first: Slice, other: Slice) -> None:
    """Check that two slices have the same size, direction and spacing."""
    if first.values.shape != other.values.shape:
        found = " and ".join(
            f"{one.values.shape[1]} x {one.values.shape[0]}" for one in (first, other)
        )
        raise SampleError(f"its slices differ in size: {found} pixels")
    turned = max(np.abs(first.across - other.across).max(), np.abs(first.down - other.down).max())
    if turned > DIRECTION_TOLERANCE:
        raise SampleError(f"its slices have different directions, as in a localizer; {CONVERTER}")
    if not np.allclose(first.sides, other.sides, rtol=1e-4):
        raise SampleError(
            f"its slices differ in spacing: pixels of {first.sides} mm and of {other.sides} mm"
        )


def _step(slices: Sequence[Slice], normal: Floats) -> Floats:
    """Return the step from one slice to the next, in millimeters left, back and up.

    Raises:
        SampleError: slices are missing, duplicated or unevenly spaced.
    """
    if len(slices) == 1:
        if not slices[0].thickness:
            raise SampleError("a series of one slice without its thickness")
        return normal * slices[0].thickness
    places = np.stack([one.place for one in slices])
    gaps = np.diff(places @ normal)
    usual = float(np.median(gaps))
    tolerance = max(PLACE_TOLERANCE * usual, PLACE_TOLERANCE_MM)
    if gaps.min() <= tolerance:
        at = float((places @ normal)[int(gaps.argmin())])
        raise SampleError(
            f"two slices at the same position ({at:.6g} mm), as in a series over time; {CONVERTER}"
        )
    if np.abs(gaps - usual).max() > tolerance:
        place = int(np.abs(gaps - usual).argmax())
        raise SampleError(
            f"unevenly spaced slices: {gaps[place]:.6g} mm "
            f"between slices {place + 1} and {place + 2} "
            f"of {len(slices)}, {usual:.6g} mm elsewhere; is one missing?"
        )
    step = (places[-1] - places[0]) / (len(slices) - 1)
    straight = places[0] + np.arange(len(slices))[:, None] * step
    if np.abs(places - straight).max() > tolerance:
        raise SampleError("its slices aren't on one straight line")
    return np.asarray(step, np.float64)


# ---------------------------------------------------------------- files


def _files(media: bytes, max_voxels: int) -> Iterator[bytes]:
    """Yield the DICOM files in a zip, or the single file."""
    if is_dicom(media):
        yield media
        return
    try:
        with zipfile.ZipFile(io.BytesIO(media)) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            _check_unpacked(media, sum(member.file_size for member in members), max_voxels)
            files = [_unpack(packed, member) for member in members]
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise SampleError("a damaged zip file") from error
    found = [file for file in files if is_dicom(file)]
    if not found or len(found) < len(files):
        raise SampleError(
            f"a zip of {len(files)} files, {len(files) - len(found)} of which aren't DICOM files"
        )
    yield from found


def _unpack(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with packed.open(member) as file:
        return file.read(member.file_size)  # a limit, if the file is longer than stated


def _check_unpacked(media: bytes, num_bytes: int, max_voxels: int) -> None:
    """Refuse files that unpack to more bytes than `max_voxels` voxels can have."""
    most = len(media) + LARGEST_VOXEL_BYTES * max_voxels
    if num_bytes > most:
        raise SampleError(
            f"it unpacks to more than {most} bytes, the most that max_voxels: {max_voxels} allows"
        )


def _check_deflated(file: bytes, max_voxels: int) -> None:
    """Refuse a DICOM file that is compressed as a whole (PS3.5, A.5) and unpacks to too much,
    because pydicom unpacks all of it before its header is known.
    """
    start = FILE_META + 12 + int.from_bytes(file[FILE_META + 8 : FILE_META + 12], "little")
    if DEFLATED in file[FILE_META:start]:
        most = len(file) + LARGEST_VOXEL_BYTES * max_voxels
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file[start:], most + 1)
        _check_unpacked(file, len(unpacked), max_voxels)


def _read_slices(file: bytes, max_voxels: int) -> Iterator[Slice]:
    """Yield the slices in a file."""
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError:
        raise SampleError(f"a DICOM file; reading it needs pydicom: {INSTALL}") from None
    try:
        _check_deflated(file, max_voxels)
        header = pydicom.dcmread(io.BytesIO(file))
        _check_kind(header)
        num_frames = int(header.get("NumberOfFrames", 1) or 1)
        check_size((int(header.Columns), int(header.Rows), num_frames), max_voxels)
        pixels = _decode(header, num_frames)
        for number in range(num_frames):
            yield make_slice(header, number, num_frames, pixels[number])
    except (InvalidDicomError, BytesLengthException, OSError, *BROKEN) as error:
        what = (
            f"{error}"
            if isinstance(error, AttributeError) and "has no attribute" in f"{error}"
            else ""
        )
        missing = what.rpartition("attribute ")[2]
        reason = f"it lacks {missing}" if missing else "its header or its pixels can't be read"
        raise SampleError(f"a damaged or incomplete DICOM file: {reason}") from error


def _check_kind(header: Any) -> None:
    """Check that a file has pixels with one number each."""
    if "Rows" not in header or ("PixelData" not in header and "FloatPixelData" not in header):
        raise SampleError("a DICOM file without pixels")
    kind = str(header.get("PhotometricInterpretation", ""))
    if int(header.get("SamplesPerPixel", 1)) != 1 or not kind.startswith("MONOCHROME"):
        raise SampleError(f"pixels of the kind {kind}, expected one number each")


def _decode(header: Any, num_frames: int) -> Any:
    """Return the pixels of a file, (frames, rows, columns)."""
    syntax = header.file_meta.TransferSyntaxUID
    try:
        pixels = header.pixel_array
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise SampleError(
            f"pixels compressed as {syntax.name}: a decoder is missing, or they are damaged:"
            f" {DECODERS}"
        ) from error
    return pixels.reshape(num_frames, int(header.Rows), int(header.Columns))


def make_slice(header: Any, number: int, num_frames: int, pixels: Any) -> Slice:
    groups = _groups(header, number)
    if num_frames > 1 and not groups:
        raise SampleError(
            f"a file of {num_frames} frames without the position of each; {CONVERTER}"
        )
    orientation = np.array(
        _find(groups, header, "PlaneOrientationSequence", "ImageOrientationPatient"), np.float64
    )
    place = np.array(
        _find(groups, header, "PlanePositionSequence", "ImagePositionPatient"), np.float64
    )
    spacing = _find(groups, header, "PixelMeasuresSequence", "PixelSpacing")
    thickness = _find(groups, header, "PixelMeasuresSequence", "SliceThickness", 0.0)
    is_inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if is_inverted:
        top = 2 ** int(header.BitsStored) - 1 if int(header.PixelRepresentation) == 0 else -1
        pixels = top - pixels.astype(np.int64)
    return Slice(
        place,
        orientation[:3],
        orientation[3:],
        (float(spacing[1]), float(spacing[0])),
        float(thickness or 0.0),
        _rescaled(groups, header, pixels),
        is_inverted,
    )


def _rescaled(groups: Sequence[Any], header: Any, pixels: Any) -> Floats:
    """Return pixels as measured values, such as Hounsfield units (PS3.3, C.11.1)."""
    if "ModalityLUTSequence" in header:
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(pixels, header), np.float64)
    slope = float(_find(groups, header, "PixelValueTransformationSequence", "RescaleSlope", 1.0))
    intercept = float(
        _find(groups, header, "PixelValueTransformationSequence", "RescaleIntercept", 0.0)
    )
    return np.asarray(pixels.astype(np.float64) * slope + intercept)


def _groups(header: Any, number: int) -> list[Any]:
    """Return the functional groups of a frame, its own first, then the shared ones; none for a file
    of one slice.
    """
    own = header.get("PerFrameFunctionalGroupsSequence")
    shared = header.get("SharedFunctionalGroupsSequence")
    return [*([own[number]] if own else []), *(shared or [])]


def _find(groups: Iterable[Any], header: Any, sequence: str, name: str, default: Any = None) -> Any:
    """Return an attribute of a frame (in files with many frames) or of the file."""
    for group in groups:
        for item in group.get(sequence) or []:
            if name in item:
                return item[name].value
    if default is not None:
        return header.get(name, default)
    return getattr(header, name)
