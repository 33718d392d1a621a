"""Writes one unit: from batches of latents to a committed file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from latentkit.contracts import Unit
from latentkit.errors import PluginError, StoreError
from latentkit.runtime.bad_samples import NOT_FINITE as NOT_FINITE
from latentkit.runtime.masks import MASK, counted_positions
from latentkit.store import int8, statistics
from latentkit.store.columns import Rows, escape
from latentkit.store.folder import Folder, canonical_json
from latentkit.store.format import (
    FORMAT_VERSION,
    LATENTS,
    LEDGER_COLUMNS,
    OFFSETS,
    STREAM_COLUMNS,
    TensorToWrite,
    unit_name,
    write_unit,
)
from latentkit.store.int8 import RoundingError
from latentkit.store.ragged import RowBatch, offsets_of, pack

SPILL_BYTES = 256 << 20
"""Tensors beyond this size wait on disk, so that memory use doesn't grow with the unit."""

COPY_BYTES = 1 << 20

DTYPE_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}

encode_json = json.JSONEncoder(sort_keys=True, default=str).encode

NOTHING_COUNTS = "no latent of it counts: its mask is empty"


@dataclass(frozen=True)
class RowLabel:
    """Everything about a row except its tensors: position of its sample in the plan (for streams:
    in its shard), view, media and geometry.
    """

    position: int
    view: str
    view_number: int = 0
    content: str | None = None
    geometry: Mapping[str, Any] | None = None
    key: str | None = None
    stamp: str | None = None
    attributes: Mapping[str, Any] | None = None


@dataclass
class _Spool:
    """A tensor being collected: what was spilled to disk, then pieces in memory, in order. `length`
    is the size of its first axis.
    """

    dtype: str
    row_shape: tuple[int, ...]
    length: int = 0
    file: IO[bytes] | None = None
    pieces: list[Tensor] = field(default_factory=list)

    def spill(self) -> None:
        """Write the pieces to disk."""
        with _as_store_error():
            if self.file is None:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
            for piece in self.pieces:
                self.file.write(_bytes_of(piece))
        self.pieces = []

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield all bytes, in order."""
        if self.file is not None:
            with _as_store_error():  # writes what the file has buffered
                self.file.seek(0)
            while chunk := self.file.read(COPY_BYTES):
                yield chunk
        yield from map(_bytes_of, self.pieces)


@dataclass
class _Bucket:
    """Collected data of a bucket: the names of its tensors, its number of rows, and the lengths of
    ragged rows.
    """

    names: Sequence[str]
    num_rows: int = 0
    lengths: list[Rows] = field(default_factory=list)

    def add(self, num_rows: int, lengths: Rows | None) -> None:
        self.num_rows += num_rows
        if lengths is not None:
            self.lengths.append(lengths)


class UnitWriter:
    """Collects one unit's rows. Nothing is visible before `commit`.

    Args:
        unit: the unit to write.
        is_stream: whether rows must contain keys and attributes, because the plan knows only
            shards.
        quantize: whether latents arrive as float32 and are stored as int8 with scales.
    """

    def __init__(self, unit: Unit, is_stream: bool = False, quantize: bool = False) -> None:
        self.unit = unit
        self._quantize = quantize
        self._spools: dict[str, _Spool] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._mask_axes: int | None = None
        self._ledger = _Ledger(is_stream)
        self._statistics: list[statistics.ChannelStatistics] = []
        self._held_bytes = 0
        self._errors: dict[str, RoundingError] = {}

    @property
    def num_ok(self) -> int:
        return self._ledger.num_ok

    @property
    def num_skipped(self) -> int:
        return self._ledger.num_skipped

    def skip(self, label: RowLabel, reason: str) -> None:
        """Record a view that is skipped."""
        self._ledger.add_skipped(label, escape(reason))

    def add(
        self,
        bucket: str,
        labels: Sequence[RowLabel],
        tensors: Mapping[str, Tensor],
        ragged_axis: int | None = None,
        measured: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Store a batch of one bucket: `tensors` by name ("moments", "latent", "indices"), on the
        CPU, in the dtype in which they are stored.

        Moments and latents to be quantized are float32. Rows that aren't finite, or that are fully
        masked, are skipped with a reason.

        Args:
            tensors: (N, ...) each; "mask", uint8, covers the first axes after the channels.
            ragged_axis: the axis, counting N, along which masked positions aren't stored; None for
                none.
            measured: result of `measure_on_device` for these tensors, now on the CPU; None to
                measure here.

        Raises:
            PluginError: earlier rows of the bucket had another shape, or differ in having a mask or
                in its axes.
            StoreError: the disk for temporary files is full.
        """
        rows = pack(tensors, ragged_axis)
        if measured is not None and not measured["finite"].all():
            measured = None  # the given statistics include the skipped rows
        if measured is None:
            rows, labels = self._skip_bad(rows, labels)
        if not labels:
            return
        stored = _quantize_rows(rows) if self._quantize else rows
        filling = self._buckets.setdefault(bucket, _Bucket(sorted(stored.tensors)))
        if filling.names != sorted(stored.tensors):
            raise PluginError(
                f"rows of the bucket {bucket!r} came with a mask and without one; either all or"
                " none of a bucket's rows must have one"
            )
        mask_axes = stored.tensors[MASK].ndim if MASK in stored.tensors else None
        self._mask_axes = self._mask_axes or mask_axes
        if mask_axes not in (None, self._mask_axes):
            raise PluginError(
                f"masks of the bucket {bucket!r} cover another number of axes than those of other"
                " buckets; all masks must cover the same axes"
            )
        for name, tensor in stored.tensors.items():
            self._append(f"{bucket}/{name}", tensor)
        for place, label in enumerate(labels):
            self._ledger.add_ok(label, bucket, filling.num_rows + place)
        filling.add(len(labels), stored.lengths)
        self._measure(stored, rows, measured)

    def commit(self, folder: Folder, settings: Mapping[str, Any], fingerprint: str) -> None:
        """Write the unit's file and make it visible, unless another process was first.

        Raises:
            StoreError: the folder can't be written, or temporary data can't be read.
        """
        header = unit_header(
            fingerprint, settings, statistics.merge(self._statistics), self._errors
        )
        with folder.create(unit_name(self.unit.name)) as file:
            write_unit(file, self._tensors(), header)
        self.close()

    def close(self) -> None:
        """Release spilled tensors."""
        for spool in self._spools.values():
            if spool.file is not None:
                spool.file.close()
            spool.pieces = []

    def _skip_bad(
        self, rows: RowBatch, labels: Sequence[RowLabel]
    ) -> tuple[RowBatch, Sequence[RowLabel]]:
        """Return the rows that can be stored, with their labels, and record the others as
        skipped.
        """
        for reason, find in (
            (NOTHING_COUNTS, RowBatch.are_filled),
            (NOT_FINITE, RowBatch.are_finite),
        ):
            if labels and not (good := find(rows)).all():
                for place in np.flatnonzero(~good).tolist():
                    self.skip(labels[place], reason)
                rows, labels = (
                    rows.select(good),
                    [labels[place] for place in np.flatnonzero(good).tolist()],
                )
        return rows, labels

    def _append(self, name: str, tensor: Tensor) -> None:
        """Append rows to the tensor `name`, and spill to disk if too much is in memory."""
        tensor = tensor.contiguous()
        spool = self._spools.get(name)
        if spool is None:
            spool = self._spools[name] = _Spool(DTYPE_CODES[tensor.dtype], tuple(tensor.shape[1:]))
        if spool.row_shape != (shape := tuple(tensor.shape[1:])):
            raise PluginError(
                f"{name}: rows of one bucket have the shapes {spool.row_shape} and {shape}; all"
                " rows of a bucket must have the same shape"
            )
        spool.pieces.append(tensor)
        spool.length += len(tensor)
        self._held_bytes += tensor.untyped_storage().nbytes()  # a view keeps the whole storage
        if self._held_bytes > SPILL_BYTES:
            for each in self._spools.values():
                each.spill()
            self._held_bytes = 0

    def _measure(
        self, stored: RowBatch, given: RowBatch, measured: Mapping[str, Tensor] | None
    ) -> None:
        """Add the statistics of the counted values as a reader sees them, and their quantization
        error.
        """
        if measured is not None:
            shape = next(iter(given.tensors.values())).shape
            count = shape[0] * math.prod(shape[2:])
            self._statistics.append(
                statistics.ChannelStatistics(count, *measured["statistics"].numpy())
            )
            return
        for name in (name for name in LATENTS if name in stored.tensors):
            values = _as_reader_sees(stored, name)
            if self._quantize:
                error = int8.measure_error(
                    values, _select_counted(given, given.tensors[name].numpy())
                )
                self._errors[name] = self._errors[name] + error if name in self._errors else error
            channels = values.shape[1] // 2 if name == "moments" else values.shape[1]
            logvar = values[:, channels:] if name == "moments" else None
            self._statistics.append(statistics.measure(values[:, :channels], logvar))

    def _tensors(self) -> list[TensorToWrite]:
        """Return the tensors to write, including the ledger."""
        tensors = [
            TensorToWrite(name, spool.dtype, (spool.length, *spool.row_shape), spool.chunks())
            for name, spool in self._spools.items()
        ]
        for bucket, filling in self._buckets.items():
            if filling.lengths:
                offsets = offsets_of(np.concatenate(filling.lengths))
                content = offsets.data.cast("B")
                tensors += [
                    TensorToWrite(f"{bucket}/{name}{OFFSETS}", "I64", offsets.shape, [content])
                    for name in filling.names
                    if not name.endswith(int8.SCALE)
                ]
        rows = self._ledger.as_arrow()
        return [
            *sorted(tensors, key=lambda tensor: tensor.name),
            TensorToWrite("rows", "U8", (len(rows),), [rows]),
        ]


class _Ledger:
    """The ledger rows of a unit, column by column."""

    def __init__(self, is_stream: bool) -> None:
        self._is_stream = is_stream
        names = LEDGER_COLUMNS | STREAM_COLUMNS if is_stream else LEDGER_COLUMNS
        self._columns: dict[str, list[Any]] = {name: [] for name in names}
        self._view_numbers: list[int] = []
        self.num_ok = 0
        self.num_skipped = 0

    def add_ok(self, label: RowLabel, bucket: str, row: int) -> None:
        self.num_ok += 1
        self._add(label, status="ok", reason=None, bucket=bucket, row=row)

    def add_skipped(self, label: RowLabel, reason: str) -> None:
        self.num_skipped += 1
        self._add(label, status="skipped", reason=reason, bucket=None, row=None)

    def _add(self, label: RowLabel, **values: Any) -> None:
        """Append one row to all columns."""
        self._view_numbers.append(label.view_number)
        values |= {"position": label.position, "view": label.view, "content": label.content}
        values["geometry"] = None if label.geometry is None else encode_json(label.geometry)
        values["stamp"] = None if label.stamp is None else escape(label.stamp)
        if self._is_stream:
            values["key"] = escape(label.key or "")
            values["attributes"] = (
                None if label.attributes is None else encode_json(label.attributes)
            )
        for name, value in values.items():
            self._columns[name].append(value)

    def as_arrow(self) -> memoryview:
        """Return an Arrow stream of the rows, sorted by sample and view."""
        order = np.lexsort((self._view_numbers, self._columns["position"])).tolist()
        types = LEDGER_COLUMNS | STREAM_COLUMNS
        columns = {
            name: pa.array([column[row] for row in order], types[name])
            for name, column in self._columns.items()
        }
        return ledger_bytes(pa.table(columns))


def unit_header(
    fingerprint: str,
    settings: Mapping[str, Any],
    measured: statistics.ChannelStatistics | None,
    errors: Mapping[str, RoundingError],
) -> dict[str, str]:
    """Return the metadata of a unit's file.

    Args:
        fingerprint: fingerprint of the dataset.
        settings: settings that the unit was encoded with.
        measured: statistics of its latents; None if it has none.
        errors: quantization errors of int8 latents, by name.
    """
    header = {
        "format": "latentkit-unit",
        "version": str(FORMAT_VERSION),
        "fingerprint": fingerprint,
        "settings": canonical_json(settings),
        "statistics": canonical_json(measured.as_json() if measured else None),
    }
    if errors:
        header[int8.METADATA] = canonical_json(
            {name: error.as_json() for name, error in errors.items()}
        )
    return header


def ledger_bytes(table: pa.Table) -> memoryview:
    """Return an Arrow stream of a unit's ledger, as its tensor "rows" stores it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return memoryview(sink.getvalue())


def _quantize_rows(rows: RowBatch) -> RowBatch:
    """Return moments and latents as int8, each with its scales per row; other tensors unchanged."""
    stored = dict(rows.tensors)
    for name in (name for name in LATENTS if name in rows.tensors):
        values, scale = int8.quantize(rows.tensors[name].numpy(), rows.lengths)
        stored |= {name: torch.from_numpy(values), name + int8.SCALE: torch.from_numpy(scale)}
    return RowBatch(stored, rows.lengths)


def _as_reader_sees(rows: RowBatch, name: str) -> npt.NDArray[np.float32]:
    """Return the stored moments or latents that count, (N, C, ...), as float32."""
    stored, scale = rows.tensors[name], rows.tensors.get(name + int8.SCALE)
    if scale is None:
        return _select_counted(rows, stored.float().numpy())
    scales = (
        scale.numpy() if rows.lengths is None else np.repeat(scale.numpy(), rows.lengths, axis=0)
    )
    return _select_counted(rows, int8.dequantize(stored.numpy(), scales))


def _select_counted(rows: RowBatch, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the values at positions that count."""
    return (
        counted_positions(values, rows.tensors[MASK].numpy().astype(np.bool_))
        if MASK in rows.tensors
        else values
    )


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")


@contextmanager
def _as_store_error() -> Iterator[None]:
    """Turn an error with a tensor on disk into a `StoreError`."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "any folder for temporary files"
        raise StoreError(
            f"latents of an unfinished unit can't be written to {where}:"
            f" {error.strerror or error}. Free space there, or set TMPDIR to a folder with more"
            " space, and run again; committed units are kept"
        ) from error
