"""Maps units into memory, and gathers batches from them: one `take` per group (a bucket in a unit)
into memory that is reused.

New output memory and per-row objects cost more than gathering; tests/benchmarks/read.py measures
it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from latentkit.contracts import LatentLayout
from latentkit.errors import DamagedError, StoreError
from latentkit.reading.rows import Codes, Group, ReadableRows
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.masks import MASK
from latentkit.store.columns import Rows
from latentkit.store.dataset_json import read_dataset
from latentkit.store.folder import Folder
from latentkit.store.int8 import SCALE
from latentkit.store.local_folder import LocalFolder
from latentkit.store.mapped_unit import Array, MappedUnit
from latentkit.store.ragged import starts_of

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
"""safetensors' names of the dtypes in dataset.json."""

INDEX_CODES = ("I64", "I32", "U8")

MAX_OPEN_ATTEMPTS = 3

ADVICE_BYTES = 128 << 10
"""Most bytes that the kernel reads for one piece of advice on some devices."""


class Mapped(NamedTuple):
    """The rows of a group: values (rows, ...), their scales (rows, C) if int8, and where the values
    are in which file.

    For ragged rows, `values` are positions and `offsets` tell which row they belong to. `mask` is
    set if rows have one.
    """

    values: Array
    scales: Array | None
    path: Path
    start: int
    offsets: Rows | None = None
    mask: Array | None = None


class Piece(NamedTuple):
    """A part of a batch from one group: its rows there, and their positions in the batch."""

    mapped: Mapped
    rows: Rows
    places: Rows | slice


class StoredRows:
    """The stored tensors of a dataset by index row. Units are mapped when they are first needed.

    Args:
        folder, document: the dataset and its dataset.json.
        layout: layout of its latents.
        tensor_name: "moments", "latent" or "indices".
        rows: position of each row.
    """

    def __init__(
        self,
        folder: Folder,
        document: Mapping[str, Any],
        layout: LatentLayout,
        tensor_name: str,
        rows: ReadableRows,
    ) -> None:
        self._folder = folder
        self._expected: Mapping[str, Any] = document["units"]
        self._tensor_name = tensor_name
        self._codes = INDEX_CODES if tensor_name == "indices" else (CODES[document["dtype"]],)
        self._channels = (
            None
            if tensor_name == "indices"
            else layout.channels * (2 if tensor_name == "moments" else 1)
        )
        self._has_one_shape = set(layout.axes) <= {"C", layout.ragged_axis}
        self._is_ragged = layout.ragged_axis is not None
        self._num_axes = len(layout.axes) - self._is_ragged
        self._num_masked: int = len(document.get("masked", ""))
        self._index = rows
        self._units: dict[str, MappedUnit] = {}
        self._groups: dict[tuple[int, bool], Mapped] = {}
        self._row_shapes: dict[str, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without memory maps, which would be pickled as the data they show."""
        return {**self.__dict__, "_units": {}, "_groups": {}}

    def only(self, rows: ReadableRows) -> Self:
        """Return a reader of these rows of the same groups, which shares the mapped units."""
        part = copy.copy(self)
        part._units, part._groups, part._index = self._units, self._groups, rows
        return part

    def gather(
        self, rows: Rows, pool: BufferPool, means_only: bool = False
    ) -> tuple[Array, Array | None]:
        """Return rows as stored, (N, ...), and their scales (N, C) if int8. `means_only` returns
        only the mean half of moments.

        Raises:
            ValueError: the rows are in several buckets with different shapes.
            StoreError: a unit is missing or damaged.
        """
        pieces = self._pieces(rows, means_only)
        values = pieces[0].mapped.values
        out = pool.get((len(rows), *values.shape[1:]), values.dtype)
        take([(piece.mapped.values, piece.rows, piece.places) for piece in pieces], out)
        if pieces[0].mapped.scales is None:
            return out, None
        scales = np.empty((len(rows), pieces[0].mapped.scales.shape[1]), np.float32)
        take(
            [
                (piece.mapped.scales, piece.rows, piece.places)
                for piece in pieces
                if piece.mapped.scales is not None
            ],
            scales,
        )
        return out, scales

    def gather_ragged(
        self, rows: Rows, pool: BufferPool, means_only: bool = False
    ) -> tuple[Array, Array | None, Rows]:
        """Return ragged rows: their positions end to end, (positions, ...), the scales of each
        position, and each row's length.
        """
        pieces = self._pieces(rows, means_only)
        spans = np.empty((2, len(rows)), np.int64)
        for piece in pieces:
            assert piece.mapped.offsets is not None
            spans[:, piece.places] = (
                piece.mapped.offsets[piece.rows],
                piece.mapped.offsets[piece.rows + 1],
            )
        lengths = spans[1] - spans[0]
        starts, values = starts_of(lengths), pieces[0].mapped.values
        out = pool.get((int(lengths.sum()), *values.shape[1:]), values.dtype)
        for piece in pieces:
            for (first, last), place in zip(
                spans[:, piece.places].T.tolist(), starts[piece.places].tolist(), strict=True
            ):
                out[place : place + last - first] = piece.mapped.values[first:last]
        if pieces[0].mapped.scales is None:
            return out, None, lengths
        scales = np.empty((len(rows), pieces[0].mapped.scales.shape[1]), np.float32)
        take(
            [
                (piece.mapped.scales, piece.rows, piece.places)
                for piece in pieces
                if piece.mapped.scales is not None
            ],
            scales,
        )
        return out, np.repeat(scales, lengths, axis=0), lengths

    def gather_masks(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return which positions of equally shaped rows count, (N, ...)."""
        pieces = self._pieces(rows, False)
        out = np.ones(
            (len(rows), *pieces[0].mapped.values.shape[2 : 2 + self._num_masked]), np.uint8
        )
        take(
            [
                (piece.mapped.mask, piece.rows, piece.places)
                for piece in pieces
                if piece.mapped.mask is not None
            ],
            out,
        )
        return out.astype(np.bool_)

    def will_need(self, rows: Rows, means_only: bool = False) -> None:
        """Tell the kernel to read these rows from disk, without waiting for them."""
        for piece in self._pieces(np.sort(rows), means_only, one_shape=False):
            with contextlib.suppress(OSError):  # the kernel may refuse advice
                _advise_kernel(piece.mapped, piece.rows)

    def stackable_buckets(self) -> Codes:
        """Return a number for each bucket, equal for buckets whose rows fit into one batch: they
        differ only along the ragged axis.

        If latents have further axes, one unit of each bucket is opened for its shape.

        Raises:
            StoreError: that unit is missing or damaged.
        """
        names = self._index.buckets
        if self._has_one_shape:
            return np.zeros(len(names), np.int32)
        if not self._is_ragged:
            return np.arange(len(names), dtype=np.int32)
        for number, group in enumerate(self._index.groups):
            if group.bucket not in self._row_shapes:
                self._map_cached(number, means_only=False)
        shapes = sorted(set(self._row_shapes.values()))
        return np.array([shapes.index(self._row_shapes[name]) for name in names], np.int32)

    def _pieces(self, rows: Rows, means_only: bool, one_shape: bool = True) -> list[Piece]:
        """Split rows into their groups."""
        groups = self._index.group_of_row[rows]
        numbers = self._index.row_in_unit[rows] * (2 if means_only and not self._is_ragged else 1)
        order = None
        if (groups[1:] < groups[:-1]).any():
            order = np.argsort(groups, kind="stable")
            groups, numbers = groups[order], numbers[order]
        bounds = [0, *(np.flatnonzero(groups[1:] != groups[:-1]) + 1).tolist(), len(rows)]
        pieces = [
            Piece(
                self._map_cached(group, means_only),
                numbers[start:stop],
                slice(start, stop) if order is None else order[start:stop],
            )
            for group, (start, stop) in zip(
                groups[bounds[:-1]].tolist(), itertools.pairwise(bounds), strict=True
            )
        ]
        if one_shape and len({piece.mapped.values.shape[1:] for piece in pieces}) > 1:
            raise ValueError(
                f"{self._folder} contains several buckets, whose rows can't be stacked. Iterate"
                " over batches() instead"
            )
        return pieces

    def _map_cached(self, number: int, means_only: bool) -> Mapped:
        """Return a group's mapped rows, mapping them when first needed."""
        mapped = self._groups.get((number, means_only))
        if mapped is None:
            # Two threads may map one group at the same time; either result serves.
            mapped = self._groups[number, means_only] = self._map(
                self._index.groups[number], means_only
            )
        return mapped

    def _map(self, group: Group, means_only: bool) -> Mapped:
        """Map the rows of a group."""
        unit = self._units.get(group.unit)
        if unit is None:
            unit = self._units[group.unit] = self._open(group.unit)
        name = f"{group.bucket}/{self._tensor_name}"
        values, stored = unit.tensor(name, self._codes)
        offsets = unit.offsets(name) if self._is_ragged else None
        num_rows = len(values) if offsets is None else len(offsets) - 1
        self._check(unit, name, (num_rows, *values.shape[1:]), group)
        scales = None
        if stored.dtype == "I8":
            scales, _ = unit.tensor(name + SCALE, ("F32",))
            if scales.shape != (num_rows, *values.shape[1:2]):
                expected = [num_rows, *values.shape[1:2]]
                raise DamagedError(
                    f"{unit.where}: tensor {name + SCALE!r} is {list(scales.shape)}, expected"
                    f" {expected}"
                )
        if means_only and offsets is not None:
            half = values.shape[1] // 2
            values, scales = values[:, :half], None if scales is None else scales[:, :half]
        elif means_only:
            # Mean and logvar of a row lie one after the other: as twice as many rows, the means are
            # the even ones.
            values = values.reshape(len(values) * 2, values.shape[1] // 2, *values.shape[2:])
            scales = None if scales is None else scales.reshape(len(scales) * 2, -1)
        mask = None if means_only else self._mask(unit, f"{group.bucket}/{MASK}", values.shape)
        return Mapped(values, scales, unit.path, stored.start, offsets, mask)

    def _mask(self, unit: MappedUnit, name: str, shape: tuple[int, ...]) -> Array | None:
        """Return a group's mask; None if every position counts."""
        if not self._num_masked or name not in unit.header.tensors:
            return None
        mask, _ = unit.tensor(name, ("U8",))
        expected = (shape[0], *shape[2 : 2 + self._num_masked])
        if mask.shape != expected:
            raise DamagedError(
                f"{unit.where}: tensor {name!r} is {list(mask.shape)}, expected {list(expected)}"
            )
        return mask

    def _open(self, name: str) -> MappedUnit:
        """Open a unit. Units that a limited cache has deleted are closed here, because open files
        keep their disk space.
        """
        for attempt in range(MAX_OPEN_ATTEMPTS):
            try:
                unit = MappedUnit(self._folder, name, self._expected[name])
                break
            except StoreError as error:
                if self._is_compacted_away(name):
                    raise StoreError(
                        f"{self._folder} was compacted since it was opened. Open it again"
                    ) from error
                # Another process may evict a unit between its download and its use.
                if (
                    not isinstance(error.__cause__, FileNotFoundError)
                    or attempt == MAX_OPEN_ATTEMPTS - 1
                ):
                    raise
        if not isinstance(self._folder, LocalFolder):
            gone = [old for old, mapped in list(self._units.items()) if not mapped.path.exists()]
            for key in [
                key for key in list(self._groups) if self._index.groups[key[0]].unit in gone
            ]:
                self._groups.pop(key, None)
            for old in gone:
                self._units.pop(old, None)
        return unit

    def _is_compacted_away(self, name: str) -> bool:
        """Return whether dataset.json no longer lists a unit that it listed when this dataset was
        opened.
        """
        try:
            return name not in read_dataset(self._folder)["units"]
        except StoreError:
            return False

    def _check(self, unit: MappedUnit, name: str, shape: tuple[int, ...], group: Group) -> None:
        """Check that a tensor contains the rows that the index names, in the layout's shape and in
        that of the bucket's other units.
        """
        row_shape = self._row_shapes.setdefault(group.bucket, shape[1:])
        fits = self._channels is None or (
            len(row_shape) == self._num_axes and row_shape[0] == self._channels
        )
        if shape[1:] != row_shape or not fits or 0 in row_shape:
            expected = (
                f"{self._channels or 'any'} channels, {self._num_axes} axes, rows {list(row_shape)}"
                " as in the bucket's other units"
            )
            raise DamagedError(
                f"{unit.where}: tensor {name!r} has rows {list(shape[1:])}, expected {expected}"
            )
        if group.last_row >= shape[0]:
            raise DamagedError(
                f"{unit.where}: the index names row {group.last_row} of tensor {name!r}, which"
                f" only has {shape[0]} rows"
            )


def take(pieces: Sequence[tuple[Array, Rows, Rows | slice]], out: Array) -> None:
    """Copy rows of several arrays to their positions in `out`, (rows, ...), all with the same row
    shape and dtype.
    """
    for array, rows, places in pieces:
        if isinstance(places, slice):
            # mode="clip" writes straight into `out`, "raise" would go through a buffer; the rows
            # have been checked against the array.
            np.take(array, rows, axis=0, out=out[places], mode="clip")
        else:
            # A copy per row costs less than taking them together and then putting them in their
            # places.
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                out[place] = array[row]


def _advise_kernel(mapped: Mapped, rows: Rows) -> None:
    """Ask the kernel to read some mapped rows."""
    rows = np.sort(rows)
    if mapped.offsets is None:
        starts, lengths = (
            rows * mapped.values[:1].nbytes,
            np.full(len(rows), mapped.values[:1].nbytes),
        )
    else:
        starts, stops = (
            mapped.offsets[numbers] * mapped.values.strides[0] for numbers in (rows, rows + 1)
        )
        lengths = stops - starts
    file = os.open(mapped.path, os.O_RDONLY)
    try:
        for start, stop in file_ranges(starts + mapped.start, lengths):
            if sys.platform == "linux":  # where alone a `ReadAhead` asks for it
                os.posix_fadvise(file, start, stop - start, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)


def file_ranges(starts: Rows, lengths: Rows | int) -> Iterator[tuple[int, int]]:
    """Yield ranges of a file, with neighbors merged, none longer than one piece of advice covers.
    `starts` ascend.
    """
    stops = starts + lengths
    gaps = np.flatnonzero(starts[1:] > stops[:-1]) + 1
    firsts, lasts = starts[np.r_[0, gaps]], stops[np.r_[gaps - 1, len(starts) - 1]]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        for start in range(first, last, ADVICE_BYTES):
            yield start, min(start + ADVICE_BYTES, last)
