"""Units as memory maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from latentkit.errors import DamagedError, StoreError
from latentkit.runtime.paths import in_shell
from latentkit.store.columns import Rows
from latentkit.store.folder import Folder
from latentkit.store.format import (
    NUMPY_DTYPES,
    OFFSETS,
    StoredTensor,
    UnitHeader,
    read_header,
    unit_name,
)
from latentkit.store.ragged import are_offsets

Array = npt.NDArray[Any]


class MappedUnit:
    """One unit's tensors as memory maps.

    Raises:
        StoreError: the file is missing, damaged, or not the one that dataset.json describes.
    """

    def __init__(self, folder: Folder, name: str, expected: Mapping[str, Any]) -> None:
        self.path: Path = folder.local_copy(unit_name(name))
        self.where = f"{folder}/{unit_name(name)}"
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.header: UnitHeader = read_header(file, size, self.where)
            # Unlike Python's own maps, torch's keep no file open. There may be more units than
            # files that a process may open.
            self._bytes: Array = torch.from_file(
                str(self.path), shared=False, size=size, dtype=torch.uint8
            ).numpy()
        except (OSError, RuntimeError, UnicodeEncodeError) as error:
            advice = f"`latentkit verify {in_shell(folder)} --repair` encodes lost units again"
            raise StoreError(
                f"{self.where} can't be mapped into memory: {error}; {advice}"
            ) from error
        if self.header.sha256 != expected["header_sha256"]:
            raise DamagedError(
                f"{self.where} is not the unit that dataset.json describes; `latentkit verify"
                f" {in_shell(folder)}` says more"
            )

    def tensor(self, name: str, codes: Sequence[str]) -> tuple[Array, StoredTensor]:
        """Return a tensor of the unit, (rows, ...), without copying, and its position in the file.

        Raises:
            DamagedError: the unit has no such tensor, or in another dtype.
        """
        stored = self.header.tensors.get(name)
        if stored is None:
            raise DamagedError(f"{self.where}: no tensor {name!r}")
        if stored.dtype not in codes or not stored.shape:
            raise DamagedError(
                f"{self.where}: tensor {name!r} is {stored.dtype} {list(stored.shape)}, expected"
                f" {' or '.join(codes)}"
            )
        values = self._bytes[stored.start : stored.start + stored.num_bytes].view(
            NUMPY_DTYPES[stored.dtype]
        )
        if not values.flags.aligned:  # numpy would copy all of it for each batch
            raise DamagedError(
                f"{self.where}: tensor {name!r} starts at byte {stored.start}, which doesn't fit"
                f" {stored.dtype}"
            )
        return values.reshape(stored.shape), stored

    def offsets(self, name: str) -> Rows:
        """Return where each row of a ragged tensor begins and the last one ends, (rows + 1,) in
        positions.

        Raises:
            DamagedError: the offsets are missing or invalid.
        """
        offsets, _ = self.tensor(name + OFFSETS, ("I64",))
        num_positions = len(self.tensor(name, tuple(NUMPY_DTYPES))[0])
        if offsets.ndim != 1 or not are_offsets(offsets, num_positions):
            raise DamagedError(
                f"{self.where}: tensor {name + OFFSETS!r} must ascend from 0 to {num_positions},"
                f" the number of positions in {name!r}"
            )
        return offsets
