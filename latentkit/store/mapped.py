"""Units as memory maps, and batches gathered from them: one `take` per (unit, tensor) into memory that is used again.

Why it is done this way (fresh output memory and per-row objects cost more than the gather) is measured in tests/benchmarks/read.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latentkit.errors import StoreError
from latentkit.store.folder import Folder
from latentkit.store.format import StoredTensor, UnitHeader, read_header
from latentkit.store.writer import unit_name

NUMPY_DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16; the bits travel as they are
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
}

Array = npt.NDArray[Any]


class MappedUnit:
    """One unit's tensors as memory maps.

    Raises:
        StoreError: missing, damaged, or not the file that dataset.json describes.
    """

    def __init__(self, folder: Folder, name: str, expected: dict[str, Any]) -> None:
        file_name = unit_name(name)
        where = f"{folder}/{file_name}"
        size = folder.size(file_name)
        with folder.open_file(file_name) as file:
            self.header: UnitHeader = read_header(file, size, where)
        if self.header.sha256 != expected["header_sha256"]:
            raise StoreError(f"{where} is not the unit that dataset.json describes; `latentkit verify {folder}` says more")
        self._bytes = np.memmap(folder.local_copy(file_name), np.uint8, "r")
        self._where = where
        self._views: dict[str, Array] = {}

    def tensor(self, name: str) -> Array:
        """A tensor of the unit, (rows, ...), without copying.

        Raises:
            StoreError: the unit has no such tensor.
        """
        view = self._views.get(name)
        if view is None:
            stored = self.header.tensors.get(name)
            if stored is None:
                raise StoreError(f"{self._where}: there is no tensor {name!r}")
            view = self._views[name] = self._view(stored)
        return view

    def _view(self, stored: StoredTensor) -> Array:
        dtype = NUMPY_DTYPES[stored.dtype]
        return np.asarray(self._bytes[stored.start : stored.start + stored.num_bytes]).view(dtype).reshape(stored.shape)


def take_rows(pieces: Sequence[tuple[Array, npt.NDArray[np.int64]]], out: Array) -> None:
    """Gather rows of several arrays one after the other into `out`, (rows, ...) of the same row shape and dtype."""
    start = 0
    for array, rows in pieces:
        stop = start + len(rows)
        if len(rows) and int(rows.max()) >= len(array):
            raise StoreError(f"the index names row {int(rows.max())} of a unit's tensor that has {len(array)}")
        # mode="clip" writes straight into `out`; "raise" would go through a buffer.
        np.take(array, rows, axis=0, out=out[start:stop], mode="clip")
        start = stop
