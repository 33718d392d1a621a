"""One unit, from batches of latents to a committed file."""

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
"""What a unit holds beyond this waits on disk, so that memory stays flat however long the unit."""

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
    """A row's position in the plan (streams: in the shard), view, media and geometry."""

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
    """One tensor in the making: what was spilled to disk, then pieces in memory, as they came;
    `length` is its first axis'.
    """

    dtype: str
    row_shape: tuple[int, ...]
    length: int = 0
    file: IO[bytes] | None = None
    pieces: list[Tensor] = field(default_factory=list)

    def spill(self) -> None:
        """Put the pieces on disk."""
        with _explained():
            if self.file is None:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
            for piece in self.pieces:
                self.file.write(_bytes_of(piece))
        self.pieces = []

    def chunks(self) -> Iterator[bytes | memoryview]:
        """All bytes, in order."""
        if self.file is not None:
            with _explained():  # what the file still buffered is written now
                self.file.seek(0)
            while chunk := self.file.read(COPY_BYTES):
                yield chunk
        yield from map(_bytes_of, self.pieces)


@dataclass
class _Bucket:
    """Names of a bucket's tensors, its rows and, of ragged ones, their lengths."""

    names: Sequence[str]
    num_rows: int = 0
    lengths: list[Rows] = field(default_factory=list)

    def add(self, num_rows: int, lengths: Rows | None) -> None:
        self.num_rows += num_rows
        if lengths is not None:
            self.lengths.append(lengths)


class UnitWriter:
    """Collects one unit's rows; nothing is visible before `commit`.

    Args:
        is_stream: whether samples are labeled here, because the plan knows only shards.
        quantize: whether latents come in float32 and are stored as int8 with their scales.
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
        """Record a view that can't be had."""
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
        CPU, in their stored dtype.

        To be quantized, moments and latents are float32. Rows that are not finite, or of which
        nothing counts, are skipped with a reason instead.

        Args:
            tensors: (N, ...) each; "mask", uint8, covers the first axes after the channels.
            ragged_axis: the axis, N counted, along which rows are stored only as far as their mask
                counts them; None for none.
            measured: what `measure_on_device` returned of these tensors, now on the CPU; None to
                measure here.

        Raises:
            PluginError: rows of the bucket had another shape before, or a mask where now there is
                none, or one over other axes.
            StoreError: there is no room for them to wait on disk.
        """
        rows = pack(tensors, ragged_axis)
        if measured is not None and not measured["finite"].all():
            measured = None  # statistics are of the rows that stay
        if measured is None:
            rows, labels = self._skip_bad(rows, labels)
        if not labels:
            return
        stored = _quantized(rows) if self._quantize else rows
        filling = self._buckets.setdefault(bucket, _Bucket(sorted(stored.tensors)))
        if filling.names != sorted(stored.tensors):
            raise PluginError(
                f"rows of the bucket {bucket!r} came with a mask and without one; a bucket's rows"
                " must be alike"
            )
        mask_axes = stored.tensors[MASK].ndim if MASK in stored.tensors else None
        self._mask_axes = self._mask_axes or mask_axes
        if mask_axes not in (None, self._mask_axes):
            raise PluginError(
                f"masks of the bucket {bucket!r} cover another number of axes than those of others;"
                " they must be alike"
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
            StoreError: the folder can't be written, or what waited on disk can't be read.
        """
        header = unit_header(
            fingerprint, settings, statistics.merge(self._statistics), self._errors
        )
        with folder.create(unit_name(self.unit.name)) as file:
            write_unit(file, self._tensors(), header)
        self.close()

    def close(self) -> None:
        """Let go of spilled tensors."""
        for spool in self._spools.values():
            if spool.file is not None:
                spool.file.close()
            spool.pieces = []

    def _skip_bad(
        self, rows: RowBatch, labels: Sequence[RowLabel]
    ) -> tuple[RowBatch, Sequence[RowLabel]]:
        """Return the rows that can be stored, with their labels; the others are recorded."""
        for reason, find in (
            (NOTHING_COUNTS, RowBatch.are_filled),
            (NOT_FINITE, RowBatch.are_finite),
        ):
            if labels and not (good := find(rows)).all():
                for place in np.flatnonzero(~good).tolist():
                    self.skip(labels[place], reason)
                rows, labels = rows.select(good), [
                    labels[place] for place in np.flatnonzero(good).tolist()
                ]
        return rows, labels

    def _append(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.contiguous()
        spool = self._spools.get(name)
        if spool is None:
            spool = self._spools[name] = _Spool(DTYPE_CODES[tensor.dtype], tuple(tensor.shape[1:]))
        if spool.row_shape != (shape := tuple(tensor.shape[1:])):
            raise PluginError(
                f"{name}: rows of one bucket have the shapes {spool.row_shape} and {shape}; a"
                " bucket is a shape"
            )
        spool.pieces.append(tensor)
        spool.length += len(tensor)
        self._held_bytes += tensor.untyped_storage().nbytes()  # a view keeps all of it
        if self._held_bytes > SPILL_BYTES:
            for each in self._spools.values():
                each.spill()
            self._held_bytes = 0

    def _measure(
        self, stored: RowBatch, given: RowBatch, measured: Mapping[str, Tensor] | None
    ) -> None:
        """Return statistics of the values that count as read, and int8's rounding error."""
        if measured is not None:
            shape = next(iter(given.tensors.values())).shape
            count = shape[0] * math.prod(shape[2:])
            self._statistics.append(
                statistics.ChannelStatistics(count, *measured["statistics"].numpy())
            )
            return
        for name in (name for name in LATENTS if name in stored.tensors):
            values = _as_read(stored, name)
            if self._quantize:
                error = int8.measure_error(values, _counted(given, given.tensors[name].numpy()))
                self._errors[name] = self._errors[name] + error if name in self._errors else error
            channels = values.shape[1] // 2 if name == "moments" else values.shape[1]
            logvar = values[:, channels:] if name == "moments" else None
            self._statistics.append(statistics.measure(values[:, :channels], logvar))

    def _tensors(self) -> list[TensorToWrite]:
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
        """An Arrow stream of the rows in order of sample and then view."""
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
    """The metadata of a unit's file.

    Args:
        fingerprint: of the dataset that it belongs to.
        settings: that it was encoded with.
        measured: statistics of its latents; None where it has none.
        errors: of latents stored as int8, by name.
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
    """An Arrow stream of a unit's ledger, as its tensor "rows" holds it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return memoryview(sink.getvalue())


def _quantized(rows: RowBatch) -> RowBatch:
    """Return moments and latents as int8 beside their scales; other tensors as they are."""
    stored = dict(rows.tensors)
    for name in (name for name in LATENTS if name in rows.tensors):
        values, scale = int8.quantize(rows.tensors[name].numpy(), rows.lengths)
        stored |= {name: torch.from_numpy(values), name + int8.SCALE: torch.from_numpy(scale)}
    return RowBatch(stored, rows.lengths)


def _as_read(rows: RowBatch, name: str) -> npt.NDArray[np.float32]:
    """Stored moments or latents that count, (N, C, ...), as numbers."""
    stored, scale = rows.tensors[name], rows.tensors.get(name + int8.SCALE)
    if scale is None:
        return _counted(rows, stored.float().numpy())
    scales = (
        scale.numpy() if rows.lengths is None else np.repeat(scale.numpy(), rows.lengths, axis=0)
    )
    return _counted(rows, int8.dequantize(stored.numpy(), scales))


def _counted(rows: RowBatch, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (
        counted_positions(values, rows.tensors[MASK].numpy().astype(np.bool_))
        if MASK in rows.tensors
        else values
    )


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what goes wrong with a tensor that waits on disk into a `StoreError`."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "any folder for temporary files"
        raise StoreError(
            f"latents that wait for the rest of their unit can't be written to {where}:"
            f" {error.strerror or error}; make room there, or set TMPDIR to a folder that has more,"
            " and run again: what is committed is kept"
        ) from error
