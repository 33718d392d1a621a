"""Volumes made for tests, as the bytes of NIfTI files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import pytest

MakeFile = Callable[..., bytes]


def make_file(
    voxels: Any,
    affine: Any = None,
    *,
    kind: Any = nibabel.Nifti1Image,
    zipped: bool = False,
    slope: float = 1.0,
    inter: float = 0.0,
) -> bytes:
    """A file of voxels (X, Y, Z, ...) in their own dtype.

    Args:
        affine: left out: voxels of 1 mm, axes right, front, up.
        slope, inter: written into the header beside the voxels as they are.
    """
    image = kind(np.asarray(voxels), np.eye(4) if affine is None else np.asarray(affine, float))
    image.header.set_slope_inter(slope, inter)
    written: bytes = image.to_bytes() if slope == 1.0 and inter == 0.0 else _unscaled_bytes(image)
    return gzip.compress(written, mtime=0) if zipped else written


def _unscaled_bytes(image: Any) -> bytes:
    """The file whose header has slope and intercept, and whose voxels are stored as they are given.
    """
    written = bytearray(image.__class__(np.asanyarray(image.dataobj), image.affine).to_bytes())
    header = image.header.copy()
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = image.header.get_slope_inter()
    written[: header.sizeof_hdr] = header.binaryblock
    return bytes(written)


@pytest.fixture(scope="session")
def nifti() -> MakeFile:
    """See `make_file`."""
    return make_file


@pytest.fixture(scope="session")
def smooth() -> Callable[..., Any]:
    """A function that gives smooth voxels of a shape, int16 from about -1000 to 1000."""

    def make(shape: tuple[int, ...], seed: int = 0) -> Any:
        places = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
        shifts = np.random.default_rng(seed).uniform(0, 6, (len(shape), 2))
        waves = [
            np.sin((2 + shift[1]) * place + shift[0])
            for place, shift in zip(places, shifts, strict=True)
        ]
        return (1000 * np.mean(waves, axis=0)).astype(np.int16)

    return make
