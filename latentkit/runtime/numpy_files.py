"""Writing many small .npy and .npz files: NumPy takes longer to begin one than to write its values.

The files are those of `numpy.save` and `numpy.savez`, which tests/unit/runtime proves.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")

ZIP_VERSION, MIDNIGHT_OF_1980 = 20, (0, 33)
"""What reads a file, and a time that is always the same."""

UTF8_NAME = 1 << 11
"""Flag of an entry."""

LARGEST_ZIP = 1 << 31
"""Bytes; more is left to NumPy."""


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Return the content of a .npy file, C-contiguous.

    Raises:
        ValueError: the array holds Python objects.
    """
    return npy_header(array) + array.tobytes()


def write_npy(path: str | os.PathLike[str], array: npt.NDArray[Any]) -> None:
    """Write a .npy file, as `numpy.save` does.

    Raises:
        OSError: it can't be written.
        ValueError: the array holds Python objects.
    """
    content = npy_bytes(array)
    with open(path, "wb") as file:
        file.write(content)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a .npz file, as `numpy.savez` does; the same arrays give the same bytes.

    Raises:
        OSError: it can't be written.
        ValueError: an array holds Python objects.
    """
    if sum(array.nbytes for array in arrays.values()) > LARGEST_ZIP:
        np.savez(path, allow_pickle=False, **arrays)
        return
    parts: list[bytes | memoryview] = []
    listing, place = bytearray(), 0
    for name, array in arrays.items():
        encoded, values = f"{name}.npy".encode(), np.ascontiguousarray(array).data
        header = npy_header(array)
        size = len(header) + array.nbytes
        checksum = zlib.crc32(values, zlib.crc32(header)) if array.size else zlib.crc32(header)
        said = (
            *(ZIP_VERSION, UTF8_NAME, 0, *MIDNIGHT_OF_1980),
            *(checksum, size, size, len(encoded), 0),
        )
        listing += CENTRAL_HEADER.pack(
            b"PK\1\2", ZIP_VERSION, *said, *(0, 0, 0, 0o600 << 16, place)
        )
        listing += encoded
        parts += [LOCAL_HEADER.pack(b"PK\3\4", *said), encoded, header, values]
        place += LOCAL_HEADER.size + len(encoded) + size
    count = len(arrays)
    end = END.pack(b"PK\5\6", 0, 0, count, count, len(listing), place, 0)
    with open(path, "wb") as file:
        file.write(b"".join([*parts, listing, end]))


def npy_header(array: npt.NDArray[Any]) -> bytes:
    """Return what stands before the values of a .npy file, which are C-contiguous.

    Raises:
        ValueError: the array holds Python objects.
    """
    if array.dtype.hasobject:
        raise ValueError("expected numbers, got an array of objects, which .npy would pickle")
    return _made_header(array.dtype, array.shape)


@functools.lru_cache(maxsize=1024)
def _made_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    described: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()
