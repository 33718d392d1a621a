"""Reads a volume from bytes of any format, recognized by how they begin."""

from __future__ import annotations

from latentkit.errors import SampleError
from latentkit_volume.dicom import ZIP_START, is_dicom, read_series
from latentkit_volume.nifti import read_volume
from latentkit_volume.nrrd_files import NRRD_START, read_nrrd
from latentkit_volume.volumes import Frame, Volume

META_IMAGE_STARTS = (b"ObjectType", b"NDims")


def read_any(media: bytes, frame: Frame, assume: str | None, max_voxels: int) -> Volume:
    """Return the volume in the bytes of a NIfTI or NRRD file, or of a DICOM series.

    Args:
        media: a file, or a zip of DICOM files.
        frame: for a 4-D volume, the frame to use, or all as channels; None refuses 4-D volumes.
        assume: where the axes point if the file doesn't say it; None refuses such a file.
        max_voxels: most voxels that are unpacked.

    Raises:
        SampleError: the file isn't a volume, is damaged, or can't be used; the message says why.
    """
    if media.startswith(NRRD_START):
        return read_nrrd(media, frame, assume, max_voxels)
    if is_dicom(media) or media.startswith(ZIP_START):
        return read_series(media, frame, assume, max_voxels)
    if media.startswith(META_IMAGE_STARTS):
        raise SampleError(
            "a MetaImage file (.mha, .mhd), which isn't supported; convert it to .nrrd or .nii.gz"
            " (SimpleITK)"
        )
    return read_volume(media, frame, assume, max_voxels)
