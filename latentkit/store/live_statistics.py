"""Statistics of the rows in the index, also if units contain superseded rows."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.errors import DamagedError
from latentkit.runtime.masks import MASK, counted_positions
from latentkit.store import int8, statistics
from latentkit.store.columns import Rows
from latentkit.store.folder import Folder
from latentkit.store.format import LATENTS, NUMPY_DTYPES, OFFSETS, StoredTensor, unit_name
from latentkit.store.index import ReadUnit
from latentkit.store.statistics import ChannelStatistics

Array = npt.NDArray[Any]

READ_BYTES = 16 << 20
"""Bytes of a tensor's rows that are measured at once."""


def measure_live(
    folder: Folder, units: Mapping[str, ReadUnit], index: pa.Table
) -> ChannelStatistics | None:
    """Return statistics of the rows in `index`, for units that contain at least one of them.

    A unit without superseded rows has its statistics in its header. In other units either the
    superseded rows or the live ones are read, whichever are fewer.

    Raises:
        StoreError: a unit can't be read or is damaged.
    """
    live = index.filter(pc.equal(index["status"], "ok")).select(["unit", "bucket", "row"])
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(live["unit"]).to_pylist()}
    stored = {name: _stored_rows(units[name]) for name in counts}
    partly = [name for name in counts if counts[name] < stored[name].num_rows]
    live = live.filter(pc.is_in(live["unit"], value_set=pa.array(partly, pa.string())))
    named = _by_unit(live)
    pieces = folder.ask_each(
        functools.partial(_measure_unit, folder, units, stored, named), list(counts)
    )
    return statistics.merge(piece for piece in pieces if piece is not None)


def whole_statistics(units: Sequence[ReadUnit]) -> ChannelStatistics | None:
    """Return statistics of all rows in the units, superseded or not."""
    pieces = (read_statistics(unit) for unit in units)
    return statistics.merge(piece for piece in pieces if piece is not None)


def read_statistics(unit: ReadUnit) -> ChannelStatistics | None:
    """Return statistics of all of a unit's rows; None if it contains no latents.

    Raises:
        DamagedError: the statistics aren't what was written.
    """
    try:
        piece = json.loads(unit.header.metadata["statistics"])
        return ChannelStatistics.from_json(piece) if piece else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"a unit's statistics are damaged ({type(error).__name__})"
        raise DamagedError(what) from error


def measure_stored(
    name: str, values: Array, scales: Array | None, mask: Array | None, lengths: Rows | None
) -> ChannelStatistics:
    """Return statistics of stored rows as a reader sees them, of the positions that count.

    Args:
        name: "moments" or "latent".
        values: (N, C, ...) as stored; for ragged rows, all their positions.
        scales: (rows, C) float32 for int8; None for other dtypes.
        mask: which positions count; None: all.
        lengths: lengths of ragged rows, in positions; None for other rows.
    """
    if scales is not None:
        scales = scales if lengths is None else np.repeat(scales, lengths, axis=0)
        numbers = int8.dequantize(values, scales)
    else:
        numbers = _as_float32(values)
    if mask is not None:
        numbers = counted_positions(numbers, mask.astype(np.bool_))
    if name != "moments":
        return statistics.measure(numbers, None)
    channels = numbers.shape[1] // 2
    return statistics.measure(numbers[:, :channels], numbers[:, channels:])


def _as_float32(values: Array) -> npt.NDArray[np.float32]:
    """Return stored latents as float32. bfloat16 is stored as its bits, the upper half of a
    float32's.
    """
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


# ---------------------------------------------------------------- which rows


def _stored_rows(unit: ReadUnit) -> pa.Table:
    """Return bucket and row of all latents in a unit."""
    return unit.rows.filter(pc.equal(unit.rows["status"], "ok")).select(["bucket", "row"])


def _by_unit(rows: pa.Table) -> dict[str, pa.Table]:
    """Return bucket and row of some index rows, by their unit."""
    if not rows.num_rows:
        return {}
    units = rows["unit"].combine_chunks().dictionary_encode()
    codes = units.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    taken = rows.select(["bucket", "row"]).take(pa.array(order))
    edges = np.searchsorted(codes[order], np.arange(len(units.dictionary) + 1)).tolist()
    names = units.dictionary.to_pylist()
    spans = zip(names, itertools.pairwise(edges), strict=True)
    return {name: taken.slice(start, stop - start) for name, (start, stop) in spans}


def _measure_unit(
    folder: Folder,
    units: Mapping[str, ReadUnit],
    stored: Mapping[str, pa.Table],
    named: Mapping[str, pa.Table],
    name: str,
) -> ChannelStatistics | None:
    """Return statistics of a unit's live rows. `named` are those of units that also contain other
    rows.
    """
    whole = read_statistics(units[name])
    if name not in named or whole is None:
        return whole
    live, there = named[name], stored[name]
    if 2 * live.num_rows <= there.num_rows:
        return _measure_rows(folder, units[name], live)
    superseded = there.filter(pc.invert(pc.is_in(_names(there), value_set=_names(live))))
    gone = _measure_rows(folder, units[name], superseded)
    return whole if gone is None else whole.without(gone)


def _names(rows: pa.Table) -> pa.Array:
    """Return bucket and row of each row as one text."""
    numbers = pc.cast(rows["row"], pa.string())
    return pc.binary_join_element_wise(rows["bucket"], numbers, "\0").combine_chunks()


# ---------------------------------------------------------------- reading them


def _measure_rows(folder: Folder, unit: ReadUnit, rows: pa.Table) -> ChannelStatistics | None:
    """Return statistics of some rows of a unit, read from its file."""
    pieces: list[ChannelStatistics] = []
    with folder.open_file(unit_name(unit.unit.name)) as file:
        for bucket in sorted(rows["bucket"].unique().to_pylist()):
            chosen = rows.filter(pc.equal(rows["bucket"], bucket))["row"].to_numpy()
            pieces += _measure_bucket(file, unit.header.tensors, bucket, np.sort(chosen))
    return statistics.merge(pieces)


def _measure_bucket(
    file: BinaryIO, tensors: Mapping[str, StoredTensor], bucket: str, rows: Rows
) -> Iterator[ChannelStatistics]:
    """Yield statistics of some rows of one bucket."""
    for name in LATENTS:
        place = f"{bucket}/{name}"
        if place not in tensors:
            continue
        latents = _Reader(file, tensors, place)
        scales = _Reader.of(file, tensors, place + int8.SCALE)
        mask = _Reader.of(file, tensors, f"{bucket}/{MASK}")
        for start in range(0, len(rows), latents.rows_at_once):
            some = rows[start : start + latents.rows_at_once]
            values, lengths = latents.read(some)
            scale = None if scales is None else scales.read(some)[0]
            counted = None if mask is None else mask.read(some)[0]
            yield measure_stored(name, values, scale, counted, lengths)


class _Reader:
    """Reads rows of a unit's tensor from its file."""

    def __init__(self, file: BinaryIO, tensors: Mapping[str, StoredTensor], name: str) -> None:
        self._file, self._stored = file, tensors[name]
        self._offsets: Rows | None = None
        if name + OFFSETS in tensors:
            self._offsets = _Reader(file, tensors, name + OFFSETS)._span(0, None)
        num_rows = self._stored.shape[0] if self._offsets is None else len(self._offsets) - 1
        self.rows_at_once = max(1, READ_BYTES * num_rows // max(1, self._stored.num_bytes))

    @classmethod
    def of(cls, file: BinaryIO, tensors: Mapping[str, StoredTensor], name: str) -> _Reader | None:
        """Return a reader of the tensor; None if the unit has no tensor of that name."""
        return cls(file, tensors, name) if name in tensors else None

    def read(self, rows: Rows) -> tuple[Array, Rows | None]:
        """Return some rows, (N, ...); for ragged ones, their positions end to end and each one's
        length.
        """
        if self._offsets is None:
            starts, stops = rows, rows + 1
        else:
            starts, stops = self._offsets[rows], self._offsets[rows + 1]
        gaps = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        firsts, lasts = starts[np.r_[0, gaps]], stops[np.r_[gaps - 1, len(rows) - 1]]
        spans = zip(firsts.tolist(), lasts.tolist(), strict=True)
        values = np.concatenate([self._span(first, last) for first, last in spans])
        return values, None if self._offsets is None else stops - starts

    def _span(self, first: int, last: int | None) -> Array:
        """Return entries of the first axis."""
        shape = self._stored.shape
        last = shape[0] if last is None else last
        entry_bytes = self._stored.num_bytes // max(1, shape[0])
        self._file.seek(self._stored.start + first * entry_bytes)
        content = self._file.read((last - first) * entry_bytes)
        dtype = NUMPY_DTYPES[self._stored.dtype]
        return np.frombuffer(content, dtype).reshape(last - first, *shape[1:])
